"""The registered model as MLflow sees it. `model_script` makes it; the code that it needs travels with the model.

Input: a column `image`, whose values may be all that `given_batch` takes. Output: the columns of the model's task
(`answer_columns.COLUMNS`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from convmlp_platform.errors import DataError
from convmlp_platform.models.prediction import MIN_SCORE
from convmlp_platform.models.serving.served_model import ServedModel


class RequestRefused(MlflowException):
    """A request as a whole can't be answered. MLflow's server puts all of the request before a message (as much as it
    was sent); this one stays as it is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or "message" not in vars(self):
            super().__setattr__(name, value)


class BundleModel(mlflow.pyfunc.PythonModel):
    """Predicts with the bundle that was logged as artifact `bundle`."""

    def load_context(self, context: Any) -> None:
        """Load the bundle."""
        self.served = ServedModel.from_folder(Path(context.artifacts["bundle"]))

    # Hints MLflow doesn't know make it warn or turn inputs away; a DataFrame's it only notes.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each image; what can't be read has an `error` and no prediction.

        `params`: of detectors `min_score`; objects of a lower score are left out.

        Raises:
            RequestRefused: there is no column `image`, or the batch is beyond a limit.
        """
        min_score = float((params or {}).get("min_score", MIN_SCORE))
        try:
            return _table(self.served.answer(_images(model_input), min_score=min_score))
        except DataError as error:
            raise RequestRefused(str(error), error_code=INVALID_PARAMETER_VALUE) from error


def _images(model_input: Any) -> list[Any]:
    """The images of an input, in the forms that MLflow leaves it in, and in those of a direct call."""
    if isinstance(model_input, pd.DataFrame):
        if "image" not in model_input.columns:
            raise DataError(f"the input has no column `image`, only {list(model_input.columns)}")
        cells = list(model_input["image"])
        # Texts under `inputs` and `instances` come as one row that holds all of them.
        if len(cells) == 1 and isinstance(cells[0], list) and all(isinstance(one, str) for one in cells[0]):
            return list(cells[0])
        return cells
    if isinstance(model_input, dict):
        if "image" not in model_input:
            raise DataError(f"the input has no `image`, only {list(model_input)}")
        return _images(model_input["image"])
    if isinstance(model_input, (bytes, str)) or (
        isinstance(model_input, np.ndarray) and model_input.ndim == 0
    ):
        return [model_input]
    return [one["image"] if isinstance(one, dict) and "image" in one else one for one in model_input]


def _table(columns: dict[str, list[Any]]) -> pd.DataFrame:
    """Columns with gaps hold objects, or pandas would make NaN of None, which is no JSON."""
    return pd.DataFrame(
        {
            name: pd.Series(values, dtype=object if any(one is None for one in values) else None)
            for name, values in columns.items()
        }
    )
