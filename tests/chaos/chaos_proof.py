"""What must hold when the chaos is over: the same weights, each sample exactly once, time that adds up, no one left."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos_run import Run
from chaos_site import REPOSITORY, ChaosError, is_alive, of_root, shared_memory, wait_for

from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.registry.decision_log import is_log
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import metric_history
from convmlp_platform.training.evaluation.evaluation_record import RECORD, metrics_of

LOSS_TOLERANCE = 1e-3
TIME_TOLERANCE = 0.02
"""What goodput's seconds may miss."""


def final_checkpoint(checkpoints: Path, run: Path) -> Checkpoint:
    """The newest, every byte of it verified, with the metrics of its evaluation."""
    location = Checkpointer(checkpoints).newest()
    if location is None:
        raise ChaosError(f"{checkpoints} holds no checkpoint")
    found = load(location)
    metrics = metrics_of(run / RECORD, found.step, found.facts["attempt"])
    if not metrics:
        raise ChaosError(f"{run / RECORD} lacks the evaluation of step {found.step}")
    return replace(found, facts=found.facts | {"metrics": metrics})


def weights_hash(checkpoint: Checkpoint) -> str:
    """SHA-256 over names and bytes of the weights, the moving average and the optimizer's state."""
    digest = hashlib.sha256()
    for group, tensors in sorted(checkpoint.tensors.items()):
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{group}/{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def compare_ends(undisturbed: Checkpoint, disturbed: Checkpoint, *, bitwise: bool) -> list[str]:
    """What differs between the ends of two runs that must not."""
    if undisturbed.step != disturbed.step:
        return [f"the run ended at step {disturbed.step}, not {undisturbed.step}"]
    ours, theirs = (c.facts["metrics"]["eval/loss"] for c in (disturbed, undisturbed))
    if bitwise and weights_hash(disturbed) != weights_hash(undisturbed):
        return [f"the final weights' hash is not the undisturbed run's (eval loss {ours:.6f}, {theirs:.6f})"]
    if abs(ours - theirs) > LOSS_TOLERANCE * abs(theirs):
        return [f"the final eval loss is {ours:.6f}, the undisturbed run's {theirs:.6f}"]
    return []


def check_samples(run: Run) -> tuple[list[str], list[str]]:
    """The ledger's verdict: its lines, and what is wrong."""
    report = check_ledger(run.folder, dataset=run.site.data)
    if report.ok and report.checked_payloads:
        return report.lines(), []
    return report.lines(), ["the ledger doesn't prove exactly-once", *report.lines()]


def check_goodput(run: Run) -> tuple[dict[str, Any], list[str]]:
    """`convmlp goodput RUN --json`: what it says, and whether it adds up to the wall time of every worker."""
    command = [sys.executable, "-m", "convmlp_platform", "goodput", str(run.folder), "--json"]
    done = subprocess.run(command, env=run.site.cluster.env, cwd=REPOSITORY, text=True, capture_output=True)
    if done.returncode:
        return {}, [f"convmlp goodput ended with {done.returncode}: {done.stderr[-1000:]}"]
    report: dict[str, Any] = json.loads(done.stdout)
    events, problems = run.events(), []
    told, wall = sum(report["seconds"].values()), events[-1]["time"] - events[0]["time"]
    for name, found, wanted in (
        ("seconds of all kinds", told, report["worker_s"]),
        ("wall time", report["wall_s"] + report["down_s"] + report["ending_s"], wall),
    ):
        if abs(found - wanted) > TIME_TOLERANCE * wanted:
            problems.append(f"goodput doesn't add up: {name} {found:.2f} s, not {wanted:.2f} s")
    return report, problems


def check_events(run: Run) -> list[str]:
    """The record begins with a driver and ends with one that reached its end."""
    events, problems = run.events(), []
    if not events or events[0]["kind"] != "driver_started":
        problems.append("events.jsonl doesn't begin with driver_started")
    if not events or events[-1]["kind"] != "driver_ended" or events[-1].get("exit_code") != 0:
        problems.append(f"events.jsonl doesn't end with driver_ended and exit code 0: {events[-1:]}")
    ended = run.of_kind("attempt_ended")
    if not ended or ended[-1]["cause"] != "finished":
        problems.append(f"the last attempt didn't end with `finished`: {ended[-1:]}")
    return problems


def check_no_one_left(run: Run) -> list[str]:
    """No process of the run's is alive: none that trained, no agent, no reader, no feeder."""
    mine = run.all_pids()

    def leftovers() -> list[str]:
        trained = [f"{pid} (start {start})" for pid, start in mine.items() if is_alive(pid)]
        return trained + [
            f"{process.pid}: {line}" for process, line in of_root(run.site, "convmlp_platform", "ray::Agent")
        ]

    try:
        wait_for(lambda: not leftovers(), "all processes of the run to be gone", timeout=20.0)
    except ChaosError:
        return [f"processes of the run are alive after its end: {leftovers()}"]
    return []


def check_nothing_left(run: Run) -> list[str]:
    """No temporary file: where runs, checkpoints and temporary files go, and in shared memory."""
    site = run.site
    places = (site.disk.path, site.records.path, site.temporary)
    left = [path for place in places for path in place.rglob("*") if _is_temporary(path)]
    left += [path for path in site.temporary.iterdir() if "convmlp" in path.name]
    left += shared_memory() - site.shared_memory_before
    return [f"temporary files are left: {sorted(map(str, left))}"] if left else []


def _is_temporary(path: Path) -> bool:
    return path.name.startswith((".tmp", ".staging", ".retired")) or path.suffix in (".tmp", ".new", ".part")


def check_mlflow(run: Run) -> list[str]:
    """The run is finished there, with every point of the journal; its model is one version, which has the alias."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.site.mlflow}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"attributes.run_name = '{run.name}'")
    if len(found) != 1:
        return [f"MLflow has {len(found)} runs named {run.name}"]
    info, problems = found[0].info, []
    if info.status != "FINISHED":
        problems.append(f"MLflow says that the run is {info.status}")
    wanted: dict[str, set[int]] = {}
    for step, values in metric_history(journal_path(run.folder)):
        for name in values:
            wanted.setdefault(name, set()).add(step)
    for name, steps in wanted.items():
        sent = {metric.step for metric in client.get_metric_history(info.run_id, name)}
        if missing := sorted(steps - sent):
            problems.append(f"MLflow lacks {len(missing)} of {len(steps)} points of {name}: {missing[:9]}")
    for model in client.search_registered_models():
        if is_log(model.name):
            continue
        versions = [version.version for version in client.search_model_versions(f"name='{model.name}'")]
        if len(versions) != 1 or model.aliases != {"candidate": versions[0], "champion": versions[0]}:
            problems.append(f"{model.name} has versions {versions} and aliases {model.aliases}")
    return problems
