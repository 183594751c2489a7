"""Versions that were registered before models took a zip of code along: found, predicted with, and loaded by MLflow."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import torch

import convmlp
import convmlp_platform
import data_prep
from convmlp_platform.cli.main import main
from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.models.bundle import BundleSpec, load_bundle, write_bundle
from convmlp_platform.models.predictors.classifier import Classifier
from convmlp_platform.registry.registry import resolve
from convmlp_platform.tracking.mlflow.client import fluent_at, open_client

# The script of such versions, but for its docstring and its messages.
SCRIPT = """
from __future__ import annotations

import base64
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
    def load_context(self, context: Any) -> None:
        self.predictor = Predictor.from_folder(Path(context.artifacts["bundle"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        if "image" not in model_input.columns:
            raise DataError("no column")
        images = [one if isinstance(one, bytes) else base64.b64decode(one) for one in model_input["image"]]
        min_score = float((params or {}).get("min_score", MIN_SCORE))
        found = [
            one.above(min_score) if isinstance(one, Detections) else one for one in self.predictor.predict(images)
        ]
        return pd.DataFrame(columns_of(found, self.predictor.spec.task.dataset))


mlflow.models.set_model(BundleModel())
"""


@pytest.fixture(scope="module")
def before(store: TrackingSection, png: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of models:/before/1, which the registry holds in its old form: with all files of three packages."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    folder = tmp_path_factory.mktemp("before")
    torch.manual_seed(3)
    spec = BundleSpec(
        model="convmlp_tiny", num_classes=3, classes=("cat", "dog", "owl"), image_size=32,
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    write_bundle(folder / "best", convmlp.create_model("convmlp_tiny", num_classes=3).state_dict(), spec)
    (folder / "pyfunc_model.py").write_text(SCRIPT)
    packages = []
    for package in (convmlp, data_prep, convmlp_platform):
        packages.append(str(folder / package.__name__))
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(str(package.__file__)).parent, packages[-1], ignore=left_out)
    open_client(store.uri or "")
    with contextlib.ExitStack() as stack:
        stack.enter_context(fluent_at(store.uri or ""))
        # The first experiment's artifacts would go to ./mlruns.
        experiment = mlflow.create_experiment("before", artifact_location=(folder / "mlruns").as_uri())
        stack.enter_context(mlflow.start_run(experiment_id=experiment))
        logged = mlflow.pyfunc.log_model(
            name="before",
            python_model=str(folder / "pyfunc_model.py"),
            artifacts={"bundle": str(folder / "best")},
            code_paths=packages,
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.binary, "image")]),
                outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability")]),
            ),
            input_example=pd.DataFrame({"image": [png]}),
            pip_requirements=["torch", "mlflow"],
        )
        mlflow.register_model(logged.model_uri, "before")
    return folder / "best"


def test_it_is_found_and_predicted_with(
    before: Path,
    store: TrackingSection,
    png: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = resolve("models:/before/1", section=store)
    assert (found.bundle / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    assert len(list((found.bundle.parents[1] / "code").rglob("*.py"))) > 250
    (tmp_path / "a.png").write_bytes(png)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri or "")
    assert main(["predict", "models:/before/1", str(tmp_path / "a.png")]) == 0
    from_registry = capsys.readouterr().out
    assert main(["predict", str(before), str(tmp_path / "a.png")]) == 0
    assert capsys.readouterr().out == from_registry


def test_mlflow_loads_it_where_our_packages_are_imported(
    before: Path, store: TrackingSection, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri or "")
    model = mlflow.pyfunc.load_model("models:/before/1")
    (wanted,) = Classifier(*load_bundle(before)).predict([png])
    for image in (png, base64.b64encode(png).decode()):
        (row,) = model.predict(pd.DataFrame({"image": [image]})).to_dict("records")
        assert row["label"] == wanted.top(1)[0][0] and row["probability"] == pytest.approx(
            wanted.top(1)[0][1]
        )
        assert [one["label"] for one in json.loads(row["top5"])] == [name for name, _ in wanted.top(5)]
