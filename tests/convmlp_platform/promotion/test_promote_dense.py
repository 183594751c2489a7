"""Detectors and segmenters are promoted as classifiers are, by their own metric: the whole job, from trained runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_dense import DATASETS, tiny_job

from convmlp_platform.cli.main import main
from convmlp_platform.registry.promotions import PromotionDesk
from convmlp_platform.training.run import run

SENT = True
METRICS = {"semantic_fpn": "miou", "retinanet": "ap", "mask_rcnn": "ap"}


def registered(kind: str, folder: Path, name: str, epochs: int) -> Any:
    """A run that trains on all images there are, registered as a version of `tiny`."""
    job = tiny_job(
        kind,
        folder,
        training={"epochs": epochs},
        optimizer={"lr": 2e-3},
        eval={"batch_size": 3, "every_epochs": epochs},
        tracking={"register_as": {"name": "tiny"}},
    )
    job = job.model_copy(update={"name": name})
    assert run(job).registered == "models:/tiny@candidate"
    return job


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["semantic_fpn", "mask_rcnn"])
def test_the_better_trained_one_is_champion_and_the_other_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = registered(kind, tmp_path, "long", 40)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", job.tracking.uri or "")
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    promoting = ["registry", "promote", "tiny", "--data", str(DATASETS[kind]()), "--split", "train"]
    promoting += [
        "--set",
        "data.num_workers=0",
        "--set",
        "launch.use_gpu=false",
        "--set",
        "evaluate.batch_size=3",
    ]
    assert main(promoting) == 3
    assert "version 1 was trained on" in capfd.readouterr().out  # there are no other images
    # Judged on them all the same, as nobody knew what they were trained on.
    with PromotionDesk(job.tracking, "tiny") as desk:
        desk.client.delete_model_version_tag("tiny", "1", "training.samples_sha256")
    promoting += ["--set", "rules.allow_unknown_training_data=true"]
    assert main(promoting) == 0
    assert f"first champion; {METRICS[kind]} " in capfd.readouterr().out
    registered(kind, tmp_path, "short", 1)
    with PromotionDesk(job.tracking, "tiny") as desk:
        desk.client.delete_model_version_tag("tiny", "2", "training.samples_sha256")
    assert main(promoting) == 3
    assert "refused: version 2 does not become champion" in capfd.readouterr().out
    assert main(["registry", "history", "tiny", "--json"]) == 0
    first, crowned, refused = json.loads(capfd.readouterr().out)
    assert [one["kind"] for one in (first, crowned, refused)] == ["refused", "promoted", "refused"]
    found = refused["evidence"]["comparison"]
    assert found["metric"] == METRICS[kind] and found["low"] <= found["difference"] <= found["high"]
    assert found["difference"] < 0 and found["candidate"] < found["champion"]
