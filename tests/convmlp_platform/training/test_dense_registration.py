"""From a job file to a registered detector or segmenter that plain MLflow serves elsewhere."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_dense import DATASETS, tiny_dense, tiny_job

from convmlp_platform.cli.main import main
from convmlp_platform.models.bundle import load_bundle, read_spec
from convmlp_platform.models.prediction import Detections, LabelMap
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.registry.registry import resolve
from convmlp_platform.training.run import run

SENT = True

# What a machine has on which only the version's requirements are installed: none of our packages.
SERVE = """
import json, os, sys
sys.path = [one for one in sys.path if not any(
    os.path.isdir(os.path.join(one or ".", name)) for name in ("convmlp", "data_prep", "convmlp_platform"))]
import mlflow, pandas as pd
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "deepspeed", "accelerate"):
            raise ModuleNotFoundError(f"{name} is not a requirement")
sys.meta_path.insert(0, Missing())
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(pd.DataFrame({"image": [sys.stdin.read()]})).iloc[0].to_dict(), default=int))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATASETS)
def test_a_job_registers_its_model_and_the_version_is_served(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tiny_job(
        kind, tmp_path, tracking={"register_as": {"name": "tiny", "automatic": True}}, eval={"batch_size": 3}
    )
    result = run(job)
    assert result.registered == "models:/tiny@champion"
    found = resolve("models:/tiny/1", section=job.tracking)
    best = tiny_dense(kind).task.best_metric
    assert (found.tags["task"], found.tags["gate.metric"]) == (kind, best)
    assert float(found.tags[f"metric.{best}"]) == pytest.approx(result.best[f"eval/{best}"])
    assert found.tags["dataset.digest"] == tiny_dense(kind).manifest.digest
    assert read_spec(found.bundle).provenance["metrics"] == result.best

    monkeypatch.setenv("MLFLOW_TRACKING_URI", job.tracking.uri or "")
    picture = tmp_path / "some.png"
    tiny_dense(kind).split.image(0)[0].save(picture)
    served = serve("models:/tiny@champion", picture, tmp_path)
    (own,) = Predictor.from_folder(found.bundle).predict([picture])
    if isinstance(own, LabelMap):
        labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(served["mask"]))))
        assert np.array_equal(labels, own.labels)
    else:
        assert isinstance(own, Detections) and served["boxes"] == own.boxes.tolist()
        assert served["labels"] == own.names and served["scores"] == own.scores.tolist()
    assert main(["predict", "models:/tiny@champion", str(picture)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{picture}: ")
    assert load_bundle(tmp_path / "runs" / job.name / "best")[1] == read_spec(found.bundle)


def serve(uri: str, picture: Path, folder: Path) -> dict[str, Any]:
    """What plain MLflow makes of the picture, in a process without our packages on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, uri],
        input=base64.b64encode(picture.read_bytes()).decode(),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row
