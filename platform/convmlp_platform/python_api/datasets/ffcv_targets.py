"""FFCV's decoders of what our .beton files hold beside plain labels: whole images, objects, label maps.

An exception in an operation would end FFCV's thread and leave the loop waiting for good: see `DecodeAnnotations`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convmlp.transforms.pixels import Normalize
from convmlp_platform.python_api.datasets.targets import label_array, object_arrays
from convmlp_platform.python_api.datasets.torch_items import as_tensors
from data_prep import console
from data_prep.writers.ffcv_writer import JSON_END


def _whole(height: int, width: int, _scale: Any, _ratio: Any) -> tuple[int, int, int, int]:
    return 0, 0, height, width


class WholeImageDecoder(ResizedCropRGBImageDecoder):
    """Scales whole images to one size (height, width): nothing is cut off, proportions change."""

    scale = ratio = 1.0  # of crops, of which there are none

    @property
    def get_crop_generator(self) -> Callable[..., tuple[int, int, int, int]]:
        """Returns the function by which FFCV's decoder finds the part of an image that it takes."""
        return _whole


class NormalizeBatch(nn.Module):
    """uint8 [B, 3, H, W] → float32 `(pixel / 255 - mean) / std`, on the images' device."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self._normalize = Normalize(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        return self._normalize(images)


class DecodeAnnotations(Operation):
    """From annotations as bytes to targets for images of one size.

    Of detection they are a list of dictionaries of tensors, one an image, whose boxes, areas and masks are scaled with
    it; of segmentation int64 [B, height, width], 255 where nothing is labelled.

    A batch with a damaged annotation is None in place of its targets, and an error is printed.
    """

    def __init__(
        self, task: str, class_ids: Sequence[int] | None, size: tuple[int, int], *, masks: bool
    ) -> None:
        super().__init__()
        self.task, self.class_ids, self.size, self.masks = task, class_ids, size, masks

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery | None]:
        """It is Python, and makes its own memory."""
        return replace(previous_state, jit_mode=False), None

    def generate_code(self) -> Callable[..., Any]:
        """Returns the function that decodes a batch."""

        def decode(content: NDArray[np.uint8], _memory: None, samples: NDArray[np.uint64]) -> Any:
            try:
                lengths = self.metadata["size"][samples]
                annotations = zip(content, lengths.tolist(), strict=True)
                return self._targets([row[:length].tobytes() for row, length in annotations])
            except Exception as error:  # see above
                console.say_error(f"an annotation in the .beton file is damaged: {error}")
                return None

        decode.with_indices = True  # type: ignore[attr-defined]
        return decode

    def _targets(self, annotations: list[bytes]) -> Tensor | list[Any]:
        if self.task == "detection":
            return [self._objects(one.removesuffix(JSON_END)) for one in annotations]
        maps = [np.asarray(self._scaled(label_array(one))) for one in annotations]
        return torch.from_numpy(np.stack(maps).astype(np.int64))

    def _objects(self, annotation: bytes) -> Any:
        from pydantic_core import from_json

        fields = from_json(annotation)
        down, across = self.size[0] / fields["height"], self.size[1] / fields["width"]
        target = object_arrays(annotation, self.class_ids, masks=self.masks)
        target["boxes"] *= np.array([across, down, across, down], np.float32)
        target["area"] *= np.float32(down * across)
        if self.masks:
            scaled = [self._scaled(mask) for mask in target["masks"]]
            target["masks"] = np.stack(scaled) if scaled else np.zeros((0, *self.size), np.uint8)
        return as_tensors(target, self.size)

    def _scaled(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Of the batch's size, by nearest neighbours."""
        if values.shape == self.size:
            return values
        return np.array(Image.fromarray(values).resize(self.size[::-1], Image.Resampling.NEAREST))
