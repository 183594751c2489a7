"""`convmlp predict models:/NAME@champion IMAGE...`"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.errors import DataError


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, most probable first."""

    image: Path
    labels: list[tuple[str, float]]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0][0]

    @property
    def probability(self) -> float:
        """Its probability."""
        return self.labels[0][1]


def predict(model_uri: str, images: list[Path], top_k: int = 5) -> list[Prediction]:
    """Classify image files by a registered model (`models:/NAME@ALIAS`, `models:/NAME/3`) or a bundle folder.

    Raises:
        DataError: an image is missing or unreadable; the message names it.
        TrackingError: no such model, or the registry can't be reached.
    """
    for image in images:  # before seconds go into loading a model
        if not image.is_file():
            raise DataError(f"{image}: no such image file")

    from convmlp_platform.tracking.classifier import Classifier
    from convmlp_platform.tracking.registry import resolve

    with tempfile.TemporaryDirectory(prefix="convmlp-model-") as folder:
        classifier = Classifier.from_folder(resolve(model_uri, into=Path(folder)).bundle)
        ranked = classifier.predict(images, top_k)
    return [Prediction(image, labels) for image, labels in zip(images, ranked, strict=True)]
