"""A bundle as an MLflow model: with script, code, signature, input example and requirements."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.models.bundle import read_spec
from convmlp_platform.models.prediction import MIN_SCORE
from convmlp_platform.models.task_spec import TaskSpec
from convmlp_platform.registry.prediction_table import COLUMNS
from convmlp_platform.tracking.mlflow.client import fluent_at

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
    import pandas as pd

    import convmlp
    import convmlp_platform
    import data_prep

    task, packages = read_spec(bundle).task, (convmlp, data_prep, convmlp_platform)
    with fluent_at(uri), mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(bundle.absolute())},
            code_paths=[str(Path(str(package.__file__)).resolve().parent) for package in packages],
            signature=_signature(task),
            input_example=pd.DataFrame({"image": [example_image]}),
            pip_requirements=_requirements(task),
        )
        registered = mlflow.register_model(info.model_uri, name, await_registration_for=60, tags=tags)
    return str(registered.version)


def _signature(task: TaskSpec) -> ModelSignature:
    """Image files go in, the task's columns come out; detectors take the least score as a parameter."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    columns = COLUMNS[task.dataset].items()
    params = [ParamSpec("min_score", DataType.double, MIN_SCORE)] if task.dataset == "detection" else []
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([ColSpec(DataType[kind], name) for name, kind in columns]),
        params=ParamSchema(params) if params else None,
    )


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
