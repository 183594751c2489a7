"""Formats of a run and of its models: job files, checkpoints, records, bundles, images to predict."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzing import Facts, Format
from goodput_story import write_run
from ledger_runs import MadeUpRun
from prep_helpers import image_bytes, smooth_image
from torch import Tensor

from convmlp import create_model
from convmlp.weight_files import read_weights
from convmlp_platform.checkpoints.checkpointer import Checkpointer, load
from convmlp_platform.checkpoints.inventory import list_checkpoints, verify_checkpoints
from convmlp_platform.checkpoints.layout import Part
from convmlp_platform.checkpoints.snapshot import Snapshots
from convmlp_platform.config.identity import write_identity
from convmlp_platform.config.load import flatten, load_job, parse_job
from convmlp_platform.errors import DataError
from convmlp_platform.evaluation.compare.compare_runs import compared_run
from convmlp_platform.evaluation.result import read_result
from convmlp_platform.goodput.account import account_of
from convmlp_platform.goodput.report_text import report_lines
from convmlp_platform.health.events import append_line
from convmlp_platform.health.heartbeat.heartbeat import HeartbeatWriter, read_heartbeat
from convmlp_platform.health.heartbeat.phases import Phase
from convmlp_platform.ledger.ledger_reader import read_attempts
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.models.bundle import BundleSpec, load_bundle, write_bundle
from convmlp_platform.models.predictors.given_images import open_image, rgb_pixels
from convmlp_platform.runs.init_record import InitRecord, check_copy, read_record, write_copy
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.runs.run_folder import stored_identity, stored_job
from convmlp_platform.runs.trial_record import read_end
from convmlp_platform.tracking.delivery_state import (
    FeedState,
    Target,
    load_feed,
    load_target,
    save_feed,
    save_target,
)
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRetired,
    Dataset,
    Journal,
    MetricsRecord,
    Params,
    Status,
    Tags,
    read_chunk,
)
from convmlp_platform.tracking.provenance.submitted_job import GivenJob, read_submission, write_submission
from convmlp_platform.training.evaluation.evaluation_record import RECORD, read_evaluations
from convmlp_platform.training.guard.guard import Rollbacks
from convmlp_platform.training.guard.incidents import open_incident, read_incidents

JOBS = Path(__file__).resolve().parents[2] / "jobs"


def _make_jobs(folder: Path) -> None:
    for name in (
        "pretrain_digits",
        "prep_coco",
        "evaluate_digits",
        "sweep_cifar10_small",
        "train_cyclemlp_cifar10",
    ):
        if (JOBS / f"{name}.yaml").is_file():
            shutil.copy(JOBS / f"{name}.yaml", folder)
    shutil.copy(JOBS / "pretrain_cifar10.yaml", folder)


def _read_jobs(folder: Path) -> Facts:
    return frozenset(str(flatten(load_job(path))) for path in sorted(folder.glob("*.yaml")))


# --- checkpoints ---------------------------------------------------------------------------------------------


def _tensors(step: int) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    weights = {name: torch.randn(5, 7, generator=generator) for name in ("a.weight", "b.weight")}
    return {
        "model": weights,
        "optimizer": {f"{name}/exp_avg": value * 2 for name, value in weights.items()},
        "ema": {name: value + 1 for name, value in weights.items()},
    }


def _make_checkpoints(folder: Path) -> None:
    """Two steps; the newest, which is the one that is damaged, is named by the pattern of its files."""
    checkpointer = Checkpointer(folder)
    for step in (3, 6):
        files = Snapshots(Part()).take(_tensors(step), {})
        facts = {"samples_seen": 8 * step, "attempt": 1, "metrics": {"eval/loss": float("nan")}, "epoch": 0.5}
        checkpointer.write(step, facts, files)


def _facts(location: str) -> Facts:
    found = load(location)
    tensors = {
        (found.step, group, name, tuple(tensor.shape), _hash(tensor))
        for group, named in found.tensors.items()
        for name, tensor in named.items()
    }
    return frozenset({*tensors, (found.step, repr(found.facts), tuple(found.tensors))})


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def _resume(folder: Path) -> Facts:
    """What a run would go on from: never nothing, the step before is whole; and what `checkpoints` says of it."""
    list_checkpoints(folder)
    list(verify_checkpoints(folder))
    location = Checkpointer(folder).newest()
    assert location is not None
    return _facts(location)


def _both(folder: Path) -> Facts:
    return _facts(str(folder / "step-000000003")) | _facts(str(folder / "step-000000006"))


def _checkpoint(name: str, files: str, **more: Any) -> Format:
    return Format(
        f"checkpoint: {name}", _make_checkpoints, f"step-000000006/{files}", _resume, checked=True,
        errors=(), whole=_both, **more,
    )  # fmt: skip


def _make_weights(folder: Path) -> None:
    model = create_model("convmlp_tiny", num_classes=3)
    torch.save(model.state_dict(), folder / "weights.pth")
    names = ("stem/kernel", "MixerBlock_0/token_mixing/Dense_0/kernel", "head/bias")
    np.savez(folder / "weights.npz", **{name: np.ones((3, 4), np.float32) for name in names})


def _read_weights(folder: Path) -> Facts:
    return frozenset(
        (path.name, name, _hash(tensor))
        for path in sorted(folder.iterdir())
        for name, tensor in read_weights(path).tensors.items()
    )


# --- records of a run ----------------------------------------------------------------------------------------


def _make_ledger(folder: Path) -> None:
    MadeUpRun(folder).with_restarts()


def _read_ledger(folder: Path) -> Facts:
    """The whole frames, each of which must be one that was written; and the proof, which must not fall over."""
    found: set[Any] = set()
    for attempt in read_attempts(folder / "ledger").values():
        found.add(str(attempt.header))
        for file in attempt.files.values():
            found |= {(file.name, frame.tobytes()) for frame in file.frames[file.whole]}
    check_ledger(folder)
    return frozenset(found)


def _make_tracking(folder: Path) -> None:
    (folder / "tracking").mkdir()
    save_target(folder, Target(uri="sqlite:///x.db", experiment="e", run_name="r", journal_id="1" * 32))
    journal = Journal(folder / "tracking" / "journal.jsonl")
    journal.append(Params(time=1, values={"optimizer.lr": "0.1"}))
    journal.append(
        Dataset(time=2, name="digits", digest="sha256:1", source="data/digits", context="training")
    )
    for step in range(9):
        values = {"train/loss": 1.5 / (step + 1), "train/images_per_second": 10.0, "eval/top1": float("nan")}
        journal.append(MetricsRecord(time=step, step=step, values=values))
    journal.append(Tags(time=3, values={"model.parameters": "12"}))
    journal.append(
        CheckpointCommitted(time=3, location="/r/step-000000008", digest="ab", step=8, facts={"epoch": "1"})
    )
    journal.append(
        CheckpointMetrics(
            time=3,
            location="/r/step-000000008",
            digest="ab",
            step=8,
            values={"eval/top1": 1.0},
            dataset="digits",
            dataset_digest="sha256:1",
        )
    )
    journal.append(
        CheckpointRetired(time=3, location="/r/step-000000008", digest="ab", step=8, reason="newer")
    )
    journal.append(Status(time=4, status="FINISHED"))
    journal.close()
    size = (folder / "tracking" / "journal.jsonl").stat().st_size
    save_feed(folder, FeedState(address="sqlite:///x.db e", run_id="2" * 32, values=size, artifacts=size))
    (folder / "job.json").write_text(_job_json())


def _job_json() -> str:
    return json.dumps(load_job(JOBS / "pretrain_digits.yaml").model_dump(mode="json"))


def _read_tracking(folder: Path) -> Facts:
    target, feed = load_target(folder), load_feed(folder)
    journal = folder / "tracking" / "journal.jsonl"
    chunk = read_chunk(journal, feed.values)
    whole = read_chunk(journal)
    line = compared_run(folder)
    return frozenset([str(target), str(feed), str(chunk), str(whole), str(line)])


def _make_goodput(folder: Path) -> None:
    write_run(folder, price=2.0)
    for step in (20, 27):
        append_line(
            folder / RECORD, json.dumps({"step": step, "attempt": 1, "metrics": {"top1": 2.5 * step}})
        )


def _read_goodput(folder: Path) -> Facts:
    found = account_of(folder)
    if found is None:
        return frozenset()
    evaluations = map(str, read_evaluations(folder / RECORD))
    return frozenset([json.dumps(found.to_dict()), *report_lines("run", found), *evaluations])


def _make_heartbeat(folder: Path) -> None:
    beats = HeartbeatWriter(folder / "beat", 1, 4)
    beats.beat(Phase.DATA, 7, 1, "reading")
    beats.beat(Phase.COMPUTE, 7, 2, "")


def _read_heartbeat(folder: Path) -> Facts:
    """Without the seconds since then; of a damaged newest record the one before is taken."""
    found = read_heartbeat(folder / "beat")
    if found is None:
        return frozenset()
    return frozenset([str(dataclasses.replace(found, stalled_s=0.0, running_s=0.0))])


def _both_beats(folder: Path) -> Facts:
    newest = _read_heartbeat(folder)
    path = folder / "beat"
    content = path.read_bytes()
    path.write_bytes(_without_newest(content))
    older = _read_heartbeat(folder)
    path.write_bytes(content)
    assert older != newest and older
    return newest | older


def _without_newest(content: bytes) -> bytes:
    from convmlp_platform.health.heartbeat import heartbeat

    slots = heartbeat._SLOTS
    newest = max(slots, key=lambda at: int.from_bytes(content[at : at + 8], "little"))
    return content[:newest] + bytes(heartbeat._SLOT) + content[newest + heartbeat._SLOT :]


def _make_run(folder: Path) -> None:
    write_identity(
        folder, {"seed": 7, "optimizer.lr": 0.001, "data.digest": "sha256:" + "1" * 64, "data.mean": [0.5]}
    )


def _read_run(folder: Path) -> Facts:
    return frozenset([json.dumps(stored_identity(folder), sort_keys=True)])


def _make_driver(folder: Path) -> None:
    """The lease that a driver which is gone by now left behind."""
    child = os.fork()
    if child == 0:
        with run_lease(folder).hold():
            os._exit(0)
    os.waitpid(child, 0)


def _read_driver(folder: Path) -> Facts:
    run_lease(folder).refuse_if_held()
    return frozenset()


def _make_records(folder: Path) -> None:
    """The small ones."""
    (folder / "job.json").write_text(_job_json())
    Rollbacks(2, 1, 30).write(folder / "rollbacks.json")
    micro = {"number": 0, "loss": 1.0, "samples": [1, 2], "epochs": [0, 0], "replaced": []}
    facts = {
        "attempt": 1,
        "loss": float("nan"),
        "grad_norm": 1.0,
        "micro_batches": [micro],
        "message": "loss nan",
    }
    open_incident(folder / "incidents", "non_finite", 12, facts)
    lineage = {"init.weights_sha256": "1" * 64}
    write_copy(folder, {"w": torch.ones(3)}, text="a", kind="file", pinned="a", lineage=lineage)
    write_submission(folder, GivenJob("jobs/a.yaml", "kind: train\n", ("seed=1",)))
    end = {"status": "finished", "steps": 9, "reason": "", "scheduler": {}}
    (folder / "trial.json").write_text(json.dumps(end))
    (folder / "result.json").write_text(json.dumps(_RESULT, indent=2))


_RESULT: dict[str, Any] = {
    "schema_version": 1,
    "name": "digits",
    "task": "classification",
    "model": {
        "given": "a", "pinned": "a", "kind": "file", "name": "convmlp_s", "parameters": 9, "macs": 8,
        "macs_size": [32, 32], "image_size": 32, "num_classes": 2,
    },
    "dataset": {"name": "d", "digest": "sha256:1", "split": "val", "images": 9, "format": "ffcv", "path": "d"},
    "metrics": {"top1": 50.0, "loss": 0.5},
    "per_class": [{"name": "a", "count": 4, "scores": {"accuracy": 50.0}}, {"name": "b", "count": 5, "scores": {}}],
    "settings": {"batch_size": 8},
    "hardware": {"device": "cpu", "name": "cpu", "threads": 2, "host": "h"},
    "seconds": 1.5,
    "date": "2026-11-29T00:00:00Z",
}  # fmt: skip


def _read_records(folder: Path) -> Facts:
    found: list[object] = [Rollbacks.read(folder / "rollbacks.json"), read_end(folder), read_result(folder)]
    found.append(flatten(parse_job(stored_job(folder), str(folder))))
    for incident in read_incidents(folder / "incidents"):
        found += [incident.facts, incident.loss, incident.micro_batches]
    record = read_record(folder)
    assert isinstance(record, InitRecord)
    found.append(read_submission(folder))
    found += [record, check_copy(folder, record).name]
    return frozenset(map(str, found))


# --- models and images ---------------------------------------------------------------------------------------


def _make_bundle(folder: Path) -> None:
    model = create_model("convmlp_tiny", num_classes=3, image_size=32)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(t.shape, generator=generator) for name, t in model.state_dict().items()}
    spec = BundleSpec(
        model="convmlp_tiny", num_classes=3, classes=("a", "b", "c"), image_size=32, mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2), provenance={"metrics": {"top1": 50.0}, "step": 9},
    )  # fmt: skip
    write_bundle(folder, {**state, **_counters(model)}, spec)


def _counters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not value.is_floating_point()}


def _read_bundle(folder: Path) -> Facts:
    model, spec = load_bundle(folder)
    return frozenset([spec.model_dump_json(), *((name, _hash(t)) for name, t in model.state_dict().items())])


def _make_images(folder: Path) -> None:
    for mode, kind in (
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("P", "PNG"),
        ("RGBA", "PNG"),
    ):
        (folder / f"{mode}.{kind.lower()}").write_bytes(image_bytes(smooth_image(3, mode=mode), kind))
    (folder / "RGB.webp").write_bytes(image_bytes(smooth_image(4), "WEBP"))
    (folder / "RGB.bmp").write_bytes(image_bytes(smooth_image(4), "BMP"))


def _read_images(folder: Path) -> Facts:
    """Each by itself, or one damaged image would hide the next one's reading."""
    found, problem = set(), None
    for path in sorted(folder.iterdir()):
        try:
            found.add((path.name, rgb_pixels(open_image(path)).tobytes()))
        except DataError as error:
            problem = error
    if problem is not None:
        raise problem
    return frozenset(found)


RUN_FORMATS = [
    Format("job file (YAML)", _make_jobs, "*.yaml", _read_jobs, text="yaml", share=2.0),
    _checkpoint("manifest", "manifest.json", text="json"),
    _checkpoint("state.json", "state.json", text="json", share=0.5),
    _checkpoint("tensors", "*.safetensors", share=0.5),
    Format("weights (.pth, .npz)", _make_weights, "*", _read_weights, errors=(ValueError,), share=0.5),
    Format("ledger", _make_ledger, "ledger/*/*.ledger", _read_ledger, checked=True),
    Format("tracking (journal)", _make_tracking, "tracking/journal.jsonl", _read_tracking, text="jsonl"),
    Format(
        "tracking (target, position)",
        _make_tracking,
        "tracking/*.json",
        _read_tracking,
        text="json",
        share=0.5,
    ),
    Format("events", _make_goodput, "events.jsonl", _read_goodput, text="jsonl"),
    Format("evaluations", _make_goodput, RECORD, _read_goodput, text="jsonl", share=0.5),
    Format("goodput log", _make_goodput, "goodput/*/*.jsonl", _read_goodput, text="jsonl"),
    Format("heartbeat", _make_heartbeat, "beat", _read_heartbeat, checked=True, whole=_both_beats),
    Format("run.json", _make_run, "run.json", _read_run, text="json"),
    Format("driver.json", _make_driver, "driver.json", _read_driver, text="json", share=0.5),
    Format("small records of a run", _make_records, "**/*.json", _read_records, text="json", share=1.5),
    Format("bundle.json", _make_bundle, "bundle.json", _read_bundle, text="json"),
    Format("bundle weights", _make_bundle, "model.safetensors", _read_bundle, share=0.5),
    Format("images (prediction)", _make_images, "*", _read_images, share=1.5),
]
