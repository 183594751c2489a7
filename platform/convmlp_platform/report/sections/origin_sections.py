"""What a run computed on, and what its model comes from: job, code, environment, parent, versions."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from convmlp_platform.errors import TrackingError
from convmlp_platform.report.blocks import (
    Block,
    FactTable,
    Folded,
    GridTable,
    Sentence,
    Verbatim,
    cut,
    ends_of,
)
from convmlp_platform.report.reported_run import ReportedRun
from convmlp_platform.report.svg_charts import plain_number
from convmlp_platform.runs.init_record import read_record
from convmlp_platform.tracking.delivery_state import load_feed, load_target
from data_prep.console import counted
from data_prep.storage.json_files import DamagedJson, read_json

_LONGEST_JOB = 40_000
_HARDWARE = {
    "device": "device",
    "world_size": "workers",
    "host.name": "rank 0's host",
    "cpu.capability": "instructions of its CPU",
    "torch.threads": "threads a process",
    "model.parameters": "parameters of the model",
}
_CODE = ("git.", "code.", "image.", "job.")


def hardware(facts: ReportedRun) -> list[Block]:
    """Devices and hosts, by the run's tags and its ranks' logs."""
    tags = facts.digest.tags
    rows = [(label, _shown(name, tags[name])) for name, label in _HARDWARE.items() if name in tags]
    settings = {
        "precision": facts.setting("engine.precision"),
        "strategy": facts.setting("engine.strategy"),
    }
    rows += [(name, str(value)) for name, value in settings.items() if value is not None]
    blocks: list[Block] = []
    if rows:
        blocks.append(FactTable("Recorded by rank 0, when it last started", rows))
    found = facts.account
    headers = [] if found is None else [file.header for start in found.history.starts for file in start.files]
    if headers:
        ranks = sorted({(one.attempt, one.rank, one.host, one.device, one.world_size) for one in headers})
        table = [[f"{a}", f"{rank}", host, device, f"{world}"] for a, rank, host, device, world in ranks]
        hosts = sorted({one.host for one in headers})
        head = ["attempt", "rank", "host", "device", "workers"]
        blocks.append(
            Folded(
                f"Ranks of each attempt, on {counted(len(hosts), 'host')}",
                [GridTable("Ranks", head, ends_of(table), frozenset({0, 1, 4}))],
            )
        )
    return [*blocks, *_load(facts)] or [Sentence("No hardware is on record: no training process came up.")]


def _load(facts: ReportedRun) -> list[Block]:
    """System metrics under MLflow's names, where the run recorded them."""
    known = {name: one for name, one in facts.digest.series.items() if name.startswith("system/")}
    rows = []
    for name, series in sorted(known.items()):
        if series.buckets:
            mean = sum(one.total for one in series.buckets) / sum(one.count for one in series.buckets)
            highest = max(one.high for one in series.buckets)
            rows.append([name.removeprefix("system/"), plain_number(mean), plain_number(highest)])
    head = ["system metric", "mean", "highest"]
    return [Folded("Load", [GridTable("Load", head, ends_of(rows), frozenset({1, 2}))])] if rows else []


def _shown(name: str, value: str) -> str:
    return f"{int(value):,}" if name == "model.parameters" and value.isdecimal() else cut(value)


@dataclass(frozen=True)
class _RegisteredVersion:
    """What is read of registered.json."""

    name: str
    version: int | str
    uri: str
    alias: str | None = None


def lineage(facts: ReportedRun) -> list[Block]:
    """Identity, code, parent, what was registered, the whole job, and all tags."""
    tags = facts.digest.tags
    rows = [("run", facts.name), ("folder", str(facts.path))]
    if facts.identity:
        rows.append(("identity", facts.identity))
    rows += [(name, cut(value)) for name, value in sorted(tags.items()) if name.startswith(_CODE)]
    if not any(name.startswith(_CODE) for name in tags):
        rows.append(("code", "no commit is on record"))
    rows += _mlflow(facts)
    blocks: list[Block] = [
        FactTable("The run", rows),
        *_parent(facts),
        *_registered(facts),
        *_job(facts),
    ]
    if tags:
        table = [[name, cut(value, 300)] for name, value in sorted(tags.items())]
        blocks.append(
            Folded(
                f"All {len(tags):,} tags",
                [GridTable("Tags of the run", ["tag", "value"], ends_of(table, 300))],
            )
        )
    return blocks


def _mlflow(facts: ReportedRun) -> list[tuple[str, str]]:
    try:
        target = load_target(facts.path)
    except TrackingError:
        return [("MLflow", "the run has no record for it")]
    feed = load_feed(facts.path)
    run = feed.run_id if feed.run_id and feed.address == target.address else "not sent yet"
    return [("MLflow", target.uri), ("MLflow experiment", target.experiment), ("MLflow run", run)]


def _parent(facts: ReportedRun) -> list[Block]:
    record = read_record(facts.path)
    if record is None:
        asked = facts.setting("model.init_from")
        return [Sentence("It started from fresh weights." if asked is None else f"It starts from {asked}.")]
    rows = [("started from", record.text), ("that was", record.pinned), ("weights", record.weights)]
    rows += sorted(record.lineage.items())
    return [FactTable("The parent model", [(name, cut(value)) for name, value in rows])]


def _registered(facts: ReportedRun) -> list[Block]:
    try:
        found = read_json(facts.folder.registered, _RegisteredVersion)
    except FileNotFoundError:
        wanted = facts.setting("tracking.register_as.name")
        told = (
            "The job registers no model." if wanted is None else f"No version of {wanted} is registered yet."
        )
        return [Sentence(told)]
    except DamagedJson as error:
        return [Sentence(f"What was registered can't be read: {cut(str(error))}", "bad")]
    alias = f", as @{found.alias}" if found.alias else ""
    return [
        Sentence(
            f"Its best model is version {found.version} of {found.name} ({found.uri}){alias}; "
            f"`convmlp registry history {found.name}` says what became of it."
        )
    ]


def _job(facts: ReportedRun) -> list[Block]:
    if not facts.job:
        return [Sentence("The job isn't shown: the run's folder has no job.json that can be read.")]
    text = yaml.safe_dump(facts.job, sort_keys=False, allow_unicode=True)
    if len(text) > _LONGEST_JOB:
        text = f"{text[:_LONGEST_JOB]}\n… cut here: job.json has the whole"
    return [Folded("The job, with overrides and all defaults", [Verbatim("job", text)])]
