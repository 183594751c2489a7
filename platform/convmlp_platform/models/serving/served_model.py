"""A bundle that answers batches: bad images are errors of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convmlp_platform.models.prediction import MIN_SCORE, Detections
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.models.serving.answer_columns import columns_of
from convmlp_platform.models.serving.given_batch import BatchLimits, given_images


class ServedModel:
    """Predicts for images in every form that requests give them in. Several threads may ask at once.

    Args:
        predictor: of the bundle.
        limits: of a batch; default: those of the environment (`BatchLimits.from_environment`).
    """

    def __init__(self, predictor: Predictor, limits: BatchLimits | None = None) -> None:
        self.predictor = predictor
        self.limits = limits or BatchLimits.from_environment()

    @classmethod
    def from_folder(cls, folder: Path) -> ServedModel:
        """The served model of a bundle folder. Raises as `load_bundle`."""
        return cls(Predictor.from_folder(folder))

    def answer(self, images: Sequence[object], *, min_score: float = MIN_SCORE) -> dict[str, list[Any]]:
        """Returns the columns of `COLUMNS` for the bundle's task, a row for each image.

        Args:
            images: each a file's bytes, its base64 text, a data URL of it, or pixels: uint8 [H, W, 3], as an array or
                nested lists.
            min_score: of detectors: objects of a lower score are left out.

        Raises:
            DataError: the batch is beyond a limit, or the model's answer is not finite.
        """
        given = given_images(images, self.limits, self.predictor.threads)
        found = [
            one.above(min_score) if isinstance(one, Detections) else one
            for one in self.predictor.predict_each(given)
        ]
        return columns_of(found, self.predictor.spec.task.name)
