"""The chain behind a version as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from convmlp_platform.registry.lineage.read_lineage import Lineage, ParentFacts
from convmlp_platform.registry.lineage.run_facts import (
    LIBRARIES,
    CodeFacts,
    DatasetFacts,
    RunFacts,
)
from convmlp_platform.registry.lineage.version_facts import CheckpointFacts, EvaluationFacts
from data_prep.console import counted

UNKNOWN = "unknown"
_WIDTH = 13
_SHORT = 12
_METRICS_SHOWN = 3
_BY_TASK = ("eval/top1", "eval/mask_ap", "eval/box_ap", "eval/miou", "eval/loss")


def lineage_lines(lineage: Lineage) -> list[str]:
    """The whole chain; a parent's lies deeper."""
    aliases = ", ".join(f"@{alias}" for alias in lineage.aliases)
    lines = [lineage.uri + (f"  {aliases}" if aliases else "")]
    lines += [f"  {line}" for line in _version_lines(lineage)]
    return lines


def _version_lines(one: Lineage) -> Iterator[str]:
    yield _row("registered", one.registered or UNKNOWN)
    kind = f" ({_kind(one.weights_kind)})" if one.weights_kind else ""
    yield _row("weights", f"sha256:{one.weights_sha256}{kind}" if one.weights_sha256 else UNKNOWN)
    yield _row("checkpoint", UNKNOWN if one.checkpoint is None else _checkpoint(one.checkpoint))
    if one.run is None:
        yield _row("run", UNKNOWN)
    else:
        yield from _run_lines(one.run)
    for name, values in one.changed.items():
        yield _row("changed", f"{name} between starts of the run: {', '.join(values)}")
    if one.parent is None:
        yield _row("began from", "fresh weights" if one.is_fresh else UNKNOWN)
    else:
        yield from _parent_lines(one.parent)
    yield from _many("evaluations", [_evaluation(each) for each in one.evaluations], "none is on record")
    yield from _many("decisions", [_decision(each) for each in one.decisions], "none is on record")
    yield from _many(UNKNOWN, [*one.unknown, *(one.run.unknown if one.run else ())], "")


def _run_lines(run: RunFacts) -> Iterator[str]:
    times = f"{run.started or UNKNOWN} to {run.ended}" if run.ended else f"since {run.started or UNKNOWN}"
    yield _row("run", f"{run.name or UNKNOWN}, {run.status.lower()}, {times}  (MLflow run {run.run_id})")
    workers = UNKNOWN if run.world_size is None else counted(run.world_size, "worker")
    yield _row("", f"{workers} on {run.device or UNKNOWN}; recipe {_short(run.identity)}")
    job = run.job_file or UNKNOWN
    for override in run.overrides or ():
        job += f" --set {override}"
    if run.job_file and run.overrides is None:
        job += "  (overrides unknown)"
    yield _row("job", job)
    yield from _many("code", list(_code(run.code)), UNKNOWN)
    yield _row("environment", _environment(run.environment))
    yield from _many("data", [_dataset(each) for each in run.datasets], UNKNOWN)


def _parent_lines(parent: ParentFacts) -> Iterator[str]:
    told = ", ".join(f"{name} {_short(value)}" for name, value in parent.told.items())
    yield _row("began from", parent.pinned + (f"  ({told})" if told else ""))
    yield _row("", f"given as {parent.source or UNKNOWN}; weights sha256:{parent.sha256 or UNKNOWN}")
    for problem in parent.unknown:
        yield _row("", f"{UNKNOWN}: {problem}")
    if parent.version is not None:
        yield from (f"  {line}" for line in lineage_lines(parent.version))
    elif parent.run is not None:
        yield from (f"    {line}" for line in _run_lines(parent.run))


def _checkpoint(one: CheckpointFacts) -> str:
    text = f"step {one.step}" + (f", {one.state}" if one.state else "")
    text += f"  {one.location}" if one.location else ""
    return text + (f"  (logged model {one.model_id})" if one.model_id else "")


def _code(code: CodeFacts) -> Iterator[str]:
    if code.commit is not None:
        state = {True: "with changes", False: "clean", None: "clean or not: unknown"}[code.dirty]
        origin = f" (known from: {code.origin})" if code.origin else ""
        yield f"commit {code.commit}, {state}{origin}"
    else:
        version = f"; package version {code.version}" if code.version and code.version != UNKNOWN else ""
        yield f"commit {UNKNOWN}{version}"
    if code.diff is not None:
        yield f"changes: lineage/code.patch of the run ({code.diff}), sha256:{code.diff_sha256 or UNKNOWN}"
    if code.trees:
        yield "git trees: " + "  ".join(f"{package} {tree[:_SHORT]}" for package, tree in code.trees.items())


def _environment(facts: dict[str, str]) -> str:
    if not facts:
        return UNKNOWN
    versions = [f"Python {facts.get('python', UNKNOWN)}"]
    versions += [f"{name} {facts[name]}" for name in LIBRARIES if name in facts]
    cpu = facts.get("cpu", f"CPU {UNKNOWN}")
    count = facts.get("threads")
    threads = "" if count is None else counted(count, "thread")
    details = ", ".join(filter(None, [facts.get("instructions"), threads]))
    return f"{', '.join(versions)}; {cpu}" + (f" ({details})" if details else "")


def _dataset(one: DatasetFacts) -> str:
    counts = [f"{one.rows:,} samples"] if one.rows is not None else []
    counts += [f"{one.classes:,} classes"] if one.classes is not None else []
    where = f"  at {one.source}" if one.source else ""
    named = f"{one.name} {one.split or f'split {UNKNOWN}'} ({one.context})"
    return f"{named}: {', '.join([*counts, one.digest])}{where}"


def _evaluation(one: EvaluationFacts) -> str:
    return (
        f"{one.at or UNKNOWN}  {one.dataset} {one.split or f'split {UNKNOWN}'}: {_scores(one.metrics)}  "
        f"(MLflow run {one.run_id})"
    )


def _scores(metrics: dict[str, float]) -> str:
    names = [name for name in _BY_TASK if name in metrics] or sorted(metrics)
    shown = [f"{name.removeprefix('eval/')} {metrics[name]:.4f}" for name in names[:_METRICS_SHOWN]]
    return "  ".join(shown) or "no metrics"


def _decision(one: dict[str, Any]) -> str:
    late = (
        "" if one["moved"] or one["kind"] == "refused" else "  (another decision came first: moved nothing)"
    )
    move = f"{one['from'] or 'none'} -> {one['to']}"
    return f"{one['at']}  {one['kind']}: @{one['alias']} {move} by {one['who']}: {one['reason']}{late}"


def _kind(weights: str) -> str:
    return {"average": "the moving average", "plain": "those that the optimizer moved"}.get(weights, weights)


def _many(name: str, values: Sequence[str], nothing: str) -> Iterator[str]:
    if not values and nothing:
        yield _row(name, nothing)
    for number, value in enumerate(values):
        yield _row(name if number == 0 else "", value)


def _row(name: str, value: str) -> str:
    return f"{name:<{_WIDTH}}{value}"


def _short(value: str | None) -> str:
    """A hash's first digits; other values as they are."""
    if value is None:
        return UNKNOWN
    digits = value.removeprefix("sha256:")
    is_hash = len(digits) > 2 * _SHORT and all(letter in "0123456789abcdef" for letter in digits)
    return f"{digits[:_SHORT]}…" if is_hash else value
