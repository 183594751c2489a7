"""A bundle as an MLflow model: with script, code, signature, input example and requirements."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from convmlp_platform.tracking.store import fluent_at

_PACKAGES = ("torch", "torchvision", "timm", "safetensors", "pillow", "pydantic", "pandas", "numpy", "mlflow")


def log_bundle(
    uri: str, run_id: str, bundle: Path, example_image: bytes, *, name: str, tags: dict[str, str]
) -> str:
    """Log `bundle` as model `name` of run `run_id` at `uri` and register it; the version's number.

    Raises:
        MlflowException, OSError: the server or its artifact store fails.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    import convmlp

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(DataType.string, "top5"),
            ]
        ),
    )
    platform_package = Path(__file__).resolve().parents[1]
    with fluent_at(uri), mlflow.start_run(run_id=run_id):
        info = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(bundle.absolute())},
            code_paths=[str(Path(convmlp.__file__).resolve().parent), str(platform_package)],
            signature=signature,
            input_example=pd.DataFrame({"image": [example_image]}),
            pip_requirements=_requirements(),
        )
        registered = mlflow.register_model(info.model_uri, name, await_registration_for=60, tags=tags)
    return str(registered.version)


def _requirements() -> list[str]:
    """What the shipped code needs from PyPI; given to MLflow, which otherwise runs the model to find out."""
    pinned = []
    for package in _PACKAGES:
        try:
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned
