"""The registered model as MLflow sees it: a script it copies and runs ("models from code", no pickle).

It and the packages `convmlp`, `data_prep` and `convmlp_platform` travel with the model, so a version is loaded by the
code that made it. Input: a column `image` of encoded image files, as bytes or base64 text. Output: the columns of
the model's task (`table.COLUMNS`).
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd

from convmlp_platform.errors import DataError
from convmlp_platform.models.prediction import MIN_SCORE, Detections
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.registry.prediction_table import columns_of


class BundleModel(mlflow.pyfunc.PythonModel):
    """Predicts with the bundle that was logged as artifact `bundle`."""

    def load_context(self, context: Any) -> None:
        """Load the bundle."""
        self.predictor = Predictor.from_folder(Path(context.artifacts["bundle"]))

    # Hints MLflow doesn't know make it warn or turn inputs away; a DataFrame's it only notes.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each image. Raises DataError on an unreadable one.

        `params`: of detectors `min_score`; objects of a lower score are left out.
        """
        images = [_image_bytes(cell, row) for row, cell in enumerate(_cells(model_input))]
        min_score = float((params or {}).get("min_score", MIN_SCORE))
        found = [
            one.above(min_score) if isinstance(one, Detections) else one
            for one in self.predictor.predict(images)
        ]
        return pd.DataFrame(columns_of(found, self.predictor.spec.task.dataset))


def _cells(model_input: Any) -> list[Any]:
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input.columns:
            raise DataError(f"the input has no column `image`, only {list(model_input.columns)}")
        return list(model_input["image"])
    if isinstance(model_input, (bytes, str)):
        return [model_input]
    if isinstance(model_input, dict):
        return _cells(model_input["image"])
    return list(model_input.ravel() if hasattr(model_input, "ravel") else model_input)


def _image_bytes(cell: Any, row: int) -> bytes:
    if isinstance(cell, dict):
        cell = cell.get("image")
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise DataError(
            f"row {row}: `image` must be an image file's bytes or base64 text ({error})"
        ) from error


mlflow.models.set_model(BundleModel())
