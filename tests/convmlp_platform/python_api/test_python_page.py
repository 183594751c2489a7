"""docs/python.md, run from top to bottom in an empty folder as a reader would; and a training on a Ray of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doc_code import python_blocks, run_code
from prepared import few_digits

import convmlp_platform as cp

pytestmark = pytest.mark.slow
SENT = True


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONVMLP_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def test_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] | None = None
    for code in python_blocks("python.md"):
        names = run_code(code, "python.md", names)
    assert names is not None
    told = capsys.readouterr().out
    assert "train(): optimizer.learning_rate: unknown key; did you mean optimizer.lr?" in told
    assert names["found"].metrics["top1"] > 80
    assert names["right"] == round(names["found"].metrics["top1"] / 100 * 73)
    assert names["result"].steps == 10 and names["job"].seed == 1


def test_the_same_call_trains_on_ray_and_registers_where_asked(tmp_path: Path) -> None:
    settings = {
        "training.steps": 4, "data.image_size": 16, "data.num_workers": 0, "launch.address": "local",
        "tracking.register_as.name": "few",
    }  # fmt: skip
    found = cp.train(out="runs/few", model="convmlp_tiny", data=few_digits(), settings=settings, ray=True)
    assert found.steps == 4 and found.run == tmp_path / "runs/few" and found.bundle is not None
    assert found.registered == "models:/few@candidate"
    model = cp.load_model(found.registered)
    assert model.source == "models:/few/1" and len(model.classes) == 10
    measured = cp.evaluate(model=found.run, data=few_digits())
    assert measured.metrics["top1"] == pytest.approx(found.best["top1"])
    assert measured.folder == tmp_path / "evaluations/few-val"
