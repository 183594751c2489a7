"""A class for each pixel, by a bundle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from convmlp_platform.models.bundle import BundleSpec
from convmlp_platform.models.prediction import LabelMap
from convmlp_platform.models.predictors.given_images import ImageLike
from convmlp_platform.models.predictors.predictor import Predictor, SeenImage, expect_finite_maps
from convmlp_platform.models.predictors.whole_images import WholeImages
from convmlp_platform.models.task_spec import SegmentationSpec


class Segmenter(Predictor):
    """Semantic FPN. One image a forward pass, as sizes differ."""

    def __init__(self, model: nn.Module, spec: BundleSpec) -> None:
        from convmlp.tasks.segmentation import SegmentationTask
        from convmlp.transforms.label_map_transforms import SegmentationEvalTransform

        super().__init__(model, spec)
        if not isinstance(spec.task, SegmentationSpec):
            raise ValueError(f"a bundle of task {spec.task.name} is no segmenter's")
        self._task = SegmentationTask(self.model, spec.num_classes).eval()  # type: ignore[arg-type]
        transform = SegmentationEvalTransform(spec.image_size, spec.task.max_side)
        self._images = WholeImages(transform, spec, self.device)
        expect_finite_maps(self.model)

    def see(self, image: ImageLike, position: int) -> SeenImage:
        """As `Predictor.see`."""
        return SeenImage(*self._images.prepared(image, position))

    @torch.inference_mode()
    def answer(self, images: Sequence[SeenImage]) -> list[LabelMap]:
        """The label map of each image. Raises as `Predictor.answer`."""
        return [self._of(image) for image in images]

    def _of(self, image: SeenImage) -> LabelMap:
        (labels,) = self._task.label_maps([image.pixels.to(self.device)], [image.size])
        return LabelMap(self.spec.classes, labels.cpu().numpy())
