"""Class names with probabilities, by a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from convmlp_platform.models.bundle import BundleSpec
from convmlp_platform.models.prediction import Labels
from convmlp_platform.models.predictors.given_images import ImageLike, open_image
from convmlp_platform.models.predictors.predictor import Predictor, SeenImage, expect_finite
from convmlp_platform.models.task_spec import ClassificationSpec


class Classifier(Predictor):
    """The classification case.

    Args:
        model, spec: as in `Predictor`.
        batch_size: images a forward pass.
    """

    def __init__(self, model: nn.Module, spec: BundleSpec, *, batch_size: int = 64) -> None:
        super().__init__(model, spec)
        self.batch_size = batch_size
        self._prepare = preparation(spec)

    def see(self, image: ImageLike, position: int) -> SeenImage:
        """As `Predictor.see`."""
        opened = open_image(image, position, self.spec.exif_orientation)
        return SeenImage(self._prepare(opened), (opened.height, opened.width))

    @torch.inference_mode()
    def answer(self, images: Sequence[SeenImage]) -> list[Labels]:
        """Softmax probabilities of each image. Raises as `Predictor.answer`."""
        batch = torch.stack([image.pixels for image in images])
        probabilities = self.model(batch.to(self.device)).float().softmax(dim=1).cpu()
        expect_finite(probabilities)
        return [Labels(self.spec.classes, row) for row in probabilities]


def preparation(spec: BundleSpec) -> Callable[[Image.Image], Tensor]:
    """From an RGB image to what a bundle's classifier sees: float32 [3, H, W], on the CPU."""
    from convmlp.transforms.image_transforms import eval_transform

    transform = eval_transform(
        spec.image_size,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        interpolation=spec.interpolation,
    )
    if not isinstance(spec.task, ClassificationSpec) or (permutation := spec.task.permutation) is None:
        return transform
    from convmlp.transforms.pixel_order import PermutedEvalTransform, pixel_order

    size = spec.image_size
    order = pixel_order(
        permutation.kind, size, size, patch_size=permutation.patch_size, seed=permutation.seed
    )
    return PermutedEvalTransform(transform, order)
