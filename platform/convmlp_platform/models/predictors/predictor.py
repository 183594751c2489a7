"""From images to what a bundle's model says of them, whatever its task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from convmlp_platform.errors import DataError
from convmlp_platform.models.bundle import BundleSpec, load_bundle
from convmlp_platform.models.prediction import Prediction
from convmlp_platform.models.predictors.given_images import ImageLike
from convmlp_platform.models.task_spec import DetectionSpec, SegmentationSpec


class Predictor(ABC):
    """A model and its image preparation, which is that of the task's evaluation. Computes on the GPU where there is
    one.

    Args:
        model: as `load_bundle` returns it.
        spec: of the same bundle.
    """

    def __init__(self, model: nn.Module, spec: BundleSpec) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.spec = spec

    @abstractmethod
    def predict(self, images: Sequence[ImageLike]) -> Sequence[Prediction]:
        """Returns the model's prediction for each image: `Labels`, `Detections` or a `LabelMap`.

        Raises:
            DataError: an image is missing or unreadable, the message names it; or the answer is not finite.
        """

    @staticmethod
    def from_folder(folder: Path) -> Predictor:
        """The predictor of a bundle folder. Raises as `load_bundle`."""
        return predictor_of(*load_bundle(folder))


def expect_finite(values: Tensor, where: str = "an image") -> None:
    """Refuse to make an answer of numbers that are none.

    Raises:
        DataError: some are infinite or NaN.
    """
    if not bool(values.isfinite().all()):
        raise DataError(
            f"{where}: the model's answer is not finite: its weights or `mean` and `std` are damaged"
        )


def expect_finite_maps(model: nn.Module) -> None:
    """Let a detector or segmenter refuse feature maps that are not finite: they would count as "no object"."""

    def check(module: nn.Module, images: tuple[Tensor, ...], maps: dict[str, Tensor]) -> None:
        for values in maps.values():
            expect_finite(values)

    model.get_submodule("backbone").register_forward_hook(check)


def predictor_of(model: nn.Module, spec: BundleSpec) -> Predictor:
    """The predictor of a bundle's model, by the task of its spec."""
    if isinstance(spec.task, DetectionSpec):
        from convmlp_platform.models.predictors.detector import Detector

        return Detector(model, spec)
    if isinstance(spec.task, SegmentationSpec):
        from convmlp_platform.models.predictors.segmenter import Segmenter

        return Segmenter(model, spec)
    from convmlp_platform.models.predictors.classifier import Classifier

    return Classifier(model, spec)
