"""Objects with boxes, and masks where the model has them, by a bundle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from convmlp_platform.models.bundle import BundleSpec
from convmlp_platform.models.prediction import Detections
from convmlp_platform.models.predictors.given_images import ImageLike
from convmlp_platform.models.predictors.predictor import Predictor, SeenImage, expect_finite_maps
from convmlp_platform.models.predictors.whole_images import WholeImages
from convmlp_platform.models.task_spec import DetectionSpec


class Detector(Predictor):
    """RetinaNet or Mask R-CNN. One image a forward pass: what is found in it doesn't depend on its company."""

    def __init__(self, model: nn.Module, spec: BundleSpec) -> None:
        from convmlp.tasks.detection import DetectionTask
        from convmlp.transforms.object_transforms import DetectionTransform

        super().__init__(model, spec)
        if not isinstance(spec.task, DetectionSpec):
            raise ValueError(f"a bundle of task {spec.task.name} is no detector's")
        self._class_ids = spec.task.class_ids
        self._task = DetectionTask(self.model, spec.task.class_ids).eval()  # type: ignore[arg-type]
        transform = DetectionTransform((spec.image_size,), spec.task.max_side)
        self._images = WholeImages(transform, spec, self.device)
        expect_finite_maps(self.model)

    def see(self, image: ImageLike, position: int) -> SeenImage:
        """As `Predictor.see`."""
        return SeenImage(*self._images.prepared(image, position))

    @torch.inference_mode()
    def answer(self, images: Sequence[SeenImage]) -> list[Detections]:
        """The objects of each image. Raises as `Predictor.answer`."""
        return [self._of(image) for image in images]

    def _of(self, image: SeenImage) -> Detections:
        (found,) = self._task.detect([image.pixels.to(self.device)], [image.size])
        cpu = {name: value.cpu() for name, value in found.items()}
        return Detections(
            self.spec.classes,
            self._class_ids,
            image.size,
            cpu["boxes"],
            cpu["scores"],
            cpu["labels"],
            cpu.get("masks"),
        )
