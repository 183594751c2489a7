"""From images to class names with probabilities, by a bundle."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from convmlp_platform.errors import DataError
from convmlp_platform.tracking.bundle import BundleSpec, load_bundle

ImageLike = Image.Image | bytes | str | Path


class Classifier:
    """A model, its classes and its image preparation. Computes on the GPU where there is one."""

    def __init__(self, model: nn.Module, spec: BundleSpec, *, batch_size: int = 64) -> None:
        from convmlp.transforms import eval_transform

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.spec = spec
        self.batch_size = batch_size
        self._prepare: Callable[[Image.Image], Tensor] = eval_transform(
            spec.image_size,
            mean=spec.mean,
            std=spec.std,
            crop_pct=spec.crop_pct,
            interpolation=spec.interpolation,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> Classifier:
        """The classifier of a bundle folder. Raises as `load_bundle`."""
        return cls(*load_bundle(folder))

    def predict(self, images: Sequence[ImageLike], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """For each image its `top_k` (or all, if fewer) class names with softmax probabilities, best first.

        Raises:
            DataError: an image is missing or unreadable; the message names it.
        """
        results: list[list[tuple[str, float]]] = []
        for probabilities in self._probabilities(images):
            top = probabilities.topk(min(top_k, self.spec.num_classes), dim=1)
            for values, classes in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                results.append([(self.spec.classes[c], v) for c, v in zip(classes, values, strict=True)])
        return results

    @torch.inference_mode()
    def _probabilities(self, images: Sequence[ImageLike]) -> Iterator[Tensor]:
        """Softmax of each batch, float32 [B, num_classes]."""
        for start in range(0, len(images), self.batch_size):
            chosen = images[start : start + self.batch_size]
            batch = torch.stack(
                [self._prepare(open_image(image, start + i)) for i, image in enumerate(chosen)]
            )
            yield self.model(batch.to(self.device)).float().softmax(dim=1).cpu()


def open_image(image: ImageLike, position: int = 0) -> Image.Image:
    """Decode fully, upright (EXIF orientation applied).

    Raises:
        DataError: naming the file, or the `position` in the list of images for bytes.
    """
    what = f"image {position}" if isinstance(image, (bytes, Image.Image)) else str(image)
    try:
        if isinstance(image, Image.Image):
            decoded = image
        else:
            decoded = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        upright = ImageOps.exif_transpose(decoded)
        upright.load()
    except FileNotFoundError:
        raise DataError(f"{what}: no such image file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what}: not a readable image: {error}") from error
    return upright
