"""A made-up run that has everything a report shows, by the product's own writers; no training takes place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from goodput_story import T0, write_run
from ledger_runs import MadeUpRun
from PIL import Image
from prepared import digits

from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.tracking.delivery_state import Target, journal_path, save_target
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointRetired,
    Dataset,
    Journal,
    MetricsRecord,
    Record,
    Status,
    Tags,
)
from convmlp_platform.training.guard.incidents import open_incident

START_MS = round(1000 * T0)


def write_all(
    run: Path, *, dataset: Path | None = None, score: str = "top1", price: float | None = 36.0
) -> Path:
    """The run in the folder `run`: two workers, one of which dies with its node; 20 steps, three evaluations."""
    dataset = dataset or digits()
    manifest = open_manifest(str(dataset))
    MadeUpRun(run, digest=manifest.digest).with_restarts()
    write_run(run, price)
    task = {"top1": "classification", "box_ap": "retinanet", "miou": "semantic_fpn"}[score]
    write_job(run, {"path": str(dataset), "train_split": "train", "eval_split": "val"}, task)
    write_journal(
        run,
        [
            Status(status="RUNNING", time=START_MS),
            Tags(
                time=START_MS,
                values={"dataset.digest": manifest.digest, "device": "cpu", "git.commit": "c0ffee"},
            ),
            Dataset(
                time=START_MS, name=manifest.name, digest=manifest.digest, source="data/x", context="training"
            ),
            *training(score),
            CheckpointCommitted(
                time=START_MS + 30_000, location=f"{run}/checkpoints/step-000000010", step=10
            ),
            CheckpointRetired(
                time=START_MS + 40_000, location=f"{run}/checkpoints/step-000000010", step=10, reason="newer"
            ),
            CheckpointCommitted(
                time=START_MS + 60_000, location=f"{run}/checkpoints/step-000000020", step=20
            ),
            Status(status="FINISHED", time=START_MS + 67_000),
        ],
    )
    write_evaluations(run, score)
    open_incident(run / "incidents", "hang", 12, {"message": "rank 1 stands still in DATA", "time": T0 + 44})
    (run / "plots").mkdir(exist_ok=True)
    Image.effect_noise((320, 200), 50).convert("RGB").save(run / "plots" / "predictions.png")
    record = {"name": "digits", "version": "3", "alias": "candidate", "uri": "models:/digits/3"}
    (run / "registered.json").write_text(json.dumps(record))
    return run


def write_job(run: Path, data: Mapping[str, Any], task: str = "classification") -> None:
    """The job as it was last started, as far as a report looks at it."""
    job = {
        "kind": "train",
        "name": run.name,
        "data": dict(data),
        "task": {"name": task},
        "model": {"name": "convmlp_tiny", "init_from": None},
        "engine": {"strategy": "ddp", "precision": "fp32"},
        "tracking": {"register_as": {"name": "digits"}},
    }
    (run / "job.json").write_text(json.dumps(job))


def training(score: str) -> list[Record]:
    """Ten lines of training, three evaluations with both kinds of weights."""
    records: list[Record] = []
    for step in range(2, 22, 2):
        values = {"train/loss": 3.0 / step, "train/lr": 1e-3, "train/images_per_second": 900.0 + step}
        records.append(MetricsRecord(time=START_MS + 3000 * step, step=step, values=values))
    for step, value in ((8, 50.0), (14, 80.0), (20, 75.0)):
        values = {f"eval/{score}": value, "eval/loss": 1.0 - value / 100}
        both = {f"eval_average/{score}": value, f"eval_plain/{score}": value - 5.0}
        records.append(MetricsRecord(time=START_MS + 3000 * step, step=step, values=values | both))
    return records


def write_evaluations(run: Path, score: str) -> None:
    """The record of the three, and of the end."""
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "attempt": attempt,
            "metrics": {f"eval/{score}": value, "eval/loss": 1.0 - value / 100},
        }
        for step, attempt, value in ((8, 1, 50.0), (14, 2, 80.0), (20, 3, 75.0))
    ]
    lines.append({"step": 20, "attempt": 3, "ended": True})
    (run / "evaluations.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def write_journal(run: Path, records: list[Record]) -> None:
    """These records, and where they were to be sent."""
    journal = Journal(journal_path(run))
    for record in records:
        journal.append(record)
    journal.close()
    save_target(run, Target(uri="sqlite:///mlflow.db", experiment="digits", run_name=run.name))
