"""A bundle as an MLflow model: with script, code, signature, input example and requirements."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.models.bundle import read_spec
from convmlp_platform.models.prediction import MIN_SCORE
from convmlp_platform.models.serving.answer_columns import COLUMNS
from convmlp_platform.models.task_spec import TaskSpec
from convmlp_platform.registry.inference_code import ZIP_NAME, zipped_code
from convmlp_platform.tracking.mlflow.client import fluent_at
from convmlp_platform.tracking.mlflow.mlflow_internals import silenced

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_PACKAGES = (
    *("torch", "torchvision", "timm", "safetensors", "pillow", "simplejpeg", "pydantic", "pandas", "numpy"),
    "mlflow",
)
_DENSE_PACKAGES = ("pycocotools", "torchmetrics")


def log_bundle(
    uri: str, run_id: str, bundle: Path, example_image: bytes, *, name: str, tags: dict[str, str]
) -> str:
    """Log `bundle` as model `name` of run `run_id` at `uri` and register it; the version's number.

    Raises:
        MlflowException, OSError: the server or its artifact store fails.
    """
    import mlflow

    # MLflow links to the model what the run logged at its step.
    step = read_spec(bundle).provenance.get("step")
    with model_parts(bundle, example_image) as parts, fluent_at(uri), mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(name=name, step=step if isinstance(step, int) else 0, **parts)
        with silenced():
            registered = mlflow.register_model(info.model_uri, name, await_registration_for=60, tags=tags)
    return str(registered.version)


@contextmanager
def model_parts(bundle: Path, example_image: bytes) -> Iterator[dict[str, Any]]:
    """The arguments of `mlflow.pyfunc.log_model` and `save_model` for a bundle; their files are there meanwhile."""
    import pandas as pd

    task = read_spec(bundle).task
    with tempfile.TemporaryDirectory(prefix="convmlp-model-") as folder:
        code = Path(folder) / ZIP_NAME
        code.write_bytes(zipped_code())
        yield {
            "python_model": str(Path(__file__).with_name("model_script.py")),
            "artifacts": {"bundle": str(bundle.absolute())},
            "code_paths": [str(code)],
            "signature": _signature(task),
            "input_example": pd.DataFrame({"image": [base64.b64encode(example_image).decode("ascii")]}),
            "pip_requirements": _requirements(task),
        }


def _signature(task: TaskSpec) -> ModelSignature:
    """Images go in, the task's columns come out; detectors take the least score as a parameter.

    A column of any type is the one signature under which MLflow leaves bytes, texts and nested lists as they are, in
    each form of a request.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    columns = COLUMNS[task.name].items()
    params = [ParamSpec("min_score", DataType.double, MIN_SCORE)] if task.dataset == "detection" else []
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema([ColSpec(_column_type(kind), name, required=False) for name, kind in columns]),
        params=ParamSchema(params) if params else None,
    )


def _column_type(kind: Any) -> Any:
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    return Array(_column_type(kind[0])) if isinstance(kind, list) else DataType[kind]


def _requirements(task: TaskSpec) -> list[str]:
    """Returns the requirements of the shipped code from PyPI.

    MLflow gets them, because otherwise it runs the model to find them out.
    """
    pinned = []
    for package in _PACKAGES if task.name == "classification" else (*_PACKAGES, *_DENSE_PACKAGES):
        try:
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned
