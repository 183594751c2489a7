"""Images and targets as PyTorch's tools expect them; and a split as a map-style Dataset of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as MapDataset

from convmlp_platform.python_api.datasets.targets import SampleTarget

if TYPE_CHECKING:
    from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset

Decoded = Literal["pil", "rgb8", "torchrgb8"]


@dataclass(frozen=True)
class ItemForm:
    """From pixels and targets as they are stored to what a training loop takes.

    Args:
        task: of the dataset.
        transform: of the PIL image.
        transforms: of the PIL image and the target together.
        decode: form of an image without transforms: uint8 [3, H, W], PIL's, or uint8 [H, W, 3] with NumPy's targets.

    Raises:
        ValueError: `transform` and `transforms` are both given.
    """

    task: str
    transform: Callable[[Image.Image], Any] | None = None
    transforms: Callable[[Any, Any], tuple[Any, Any]] | None = None
    decode: Decoded = "torchrgb8"

    def __post_init__(self) -> None:
        if self.transform is not None and self.transforms is not None:
            raise ValueError("give transform, of the image, or transforms, of image and target: not both")

    def __call__(self, pixels: NDArray[np.uint8], target: SampleTarget) -> tuple[Any, Any]:
        """Image and target.

        Args:
            pixels: uint8 [H, W, 3], writable.
            target: as `targets.target_of` makes it.
        """
        if self.transforms is not None:
            return self.transforms(Image.fromarray(pixels), as_tensors(target, pixels.shape[:2]))
        if self.transform is not None:
            return self.transform(Image.fromarray(pixels)), as_tensors(target, pixels.shape[:2])
        if self.decode == "rgb8":
            return pixels, target
        image = Image.fromarray(pixels) if self.decode == "pil" else torch.from_numpy(pixels).permute(2, 0, 1)
        return image, as_tensors(target, pixels.shape[:2])


def as_tensors(target: SampleTarget, size: tuple[int, ...]) -> int | dict[str, Any] | Tensor:
    """The target in tensors: a label as it is, boxes, masks and label maps as torchvision's `tv_tensors`.

    Args:
        target: of one image.
        size: height and width of the image.
    """
    if isinstance(target, int):
        return target
    from torchvision import tv_tensors

    if not isinstance(target, dict):
        return tv_tensors.Mask(torch.from_numpy(target.astype(np.int64)))
    found: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in target.items()
    }
    found["boxes"] = tv_tensors.BoundingBoxes(found["boxes"], format="XYXY", canvas_size=(size[0], size[1]))
    if "masks" in found:
        found["masks"] = tv_tensors.Mask(found["masks"])
    return found


class TorchSplit(MapDataset[tuple[Any, Any]]):
    """A split for `torch.utils.data.DataLoader`, with any number of workers, forked or spawned.

    `split[i]` is (image, target) as `form` makes them. `classes` and `prepared`: of the dataset it was made of.
    """

    def __init__(self, prepared: PreparedDataset, form: ItemForm) -> None:
        self.prepared, self.form = prepared, form

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the labels."""
        return self.prepared.classes

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return self.form(*self.prepared[place])
