"""A replay for people: lines, a contact sheet of the samples to look at, and all of it as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convmlp_platform.data.dataset.sample_view import ROOM
from convmlp_platform.errors import DataError
from convmlp_platform.pictures.annotate import resized
from convmlp_platform.pictures.contact_sheet import Cell, contact_sheet, fit
from convmlp_platform.replay.replay_step import Replay
from convmlp_platform.replay.sample_search import MicroBatchFindings, SampleLoss
from data_prep.console import counted
from data_prep.storage.files import write_atomically

_SHOWN, _ON_SHEET, _COLUMNS = 8, 12, 4
_LOSSES = 16
"""Of more micro-batches, the losses of the largest are shown."""


def report_lines(replay: Replay) -> list[str]:
    """Returns the findings of a replay, line by line."""
    record = replay.record
    step, span = record.step, record.line[-1]
    return [
        f"step      {step} of {record.run.name}, counted from 0 (the run logs it under step {step + 1}); attempt "
        f"{span.attempt}, {counted(span.world_size, 'worker')}, learning rate {replay.lr:.6g}",
        *_exactness(replay),
        *_batch(replay),
        *_numbers(replay),
        *_micro_batches(replay),
        *_verdict(replay),
    ]


def _exactness(replay: Replay) -> Iterator[str]:
    if not replay.inexact:
        yield "exact     each micro-batch to the last bit: same weights, images, random numbers, libraries and threads"
    for at, reason in enumerate(replay.inexact):
        yield f"{'' if at else 'inexact':10}{reason}"
    if replay.inexact:
        yield "          so equal within rounding only"
    elif replay.inexact_sums:
        yield f"          loss and gradient norm within rounding: {replay.inexact_sums[0]}"


def _batch(replay: Replay) -> Iterator[str]:
    training = replay.record.job.training
    compared = (
        "each as the ledger says it was read"
        if replay.compared
        else "not compared: the ledger has no record of the step; these are the samples that were due"
    )
    yield f"batch     {training.global_batch_size} images in {training.num_micro_batches} micro-batches, {compared}"
    if replay.num_replaced:
        yield f"          {replay.num_replaced} damaged ones replaced by others, as they were then"


def _numbers(replay: Replay) -> Iterator[str]:
    record, incident = replay.record, replay.record.incident
    if incident is not None:
        where = f"incident {incident.number}"
        yield f"loss      {_shown(replay.loss)}   {_compared(replay.loss, incident.loss, where)}"
        yield f"gradient  {_shown(replay.grad_norm)}   {_compared(replay.grad_norm, incident.grad_norm, where)}"
        return
    yield f"loss      {_shown(replay.loss)}"
    yield f"gradient  {_shown(replay.grad_norm)} (L2 norm before clipping)"
    logged = record.logged
    if logged is None:
        yield "          the run has logged no metrics of this step"
        return
    steps = (
        f"step {logged.first}" if logged.first == logged.last else f"steps {logged.first} to {logged.last}"
    )
    where = f"the metrics of {steps}"
    if replay.window is None:
        yield f"logged    mean loss {_shown(logged.loss)} in {where}, which were not all done again"
        return
    loss, grad_norm = replay.window
    mean = "" if logged.first == logged.last else f" of {steps}"
    yield f"logged    mean loss{mean} {_shown(loss)}   {_compared(loss, logged.loss, where)}"
    if logged.grad_norm is not None:
        yield f"          gradient{mean} {_shown(grad_norm)}   {_compared(grad_norm, logged.grad_norm, where)}"


def _compared(found: float, recorded: float | None, where: str) -> str:
    if recorded is None:
        return f"not in {where}"
    if found == recorded or (math.isnan(found) and math.isnan(recorded)):
        return f"equal to the last bit to {where}"
    if math.isfinite(found) and math.isfinite(recorded):
        return f"{_shown(recorded)} in {where}: differs by {abs(found - recorded) / abs(recorded or 1):.1e} of it"
    return f"but {_shown(recorded)} in {where}"


def _micro_batches(replay: Replay) -> Iterator[str]:
    losses = list(enumerate(replay.losses))
    chosen = losses
    if len(losses) > _LOSSES:
        chosen = sorted(losses, key=lambda entry: (math.isfinite(entry[1]), -entry[1]))[:_LOSSES]
    heading = "losses" if len(chosen) == len(losses) else "largest"
    shown = "  ".join(f"{at}: {_shown(loss)}" for at, loss in chosen)
    yield f"{heading:10}by micro-batch  {shown}"
    incident = replay.record.incident
    known = {entry["number"]: entry["loss"] for entry in incident.micro_batches} if incident else {}
    recorded = [(found, known[at]) for at, found in losses if known.get(at) is not None]
    if recorded:
        equal = sum(found == then or (found != found and then != then) for found, then in recorded)
        yield f"          {equal} of {len(recorded)} are equal to the last bit to the incident's"


def _verdict(replay: Replay) -> Iterator[str]:
    if replay.bad_weights:
        names = ", ".join(replay.bad_weights[:3])
        yield f"cause     the weights were not finite before the step ({names}): look at the steps before it"
        return
    incident, findings = replay.record.incident, replay.findings
    if replay.finite:
        then = incident.loss if incident is not None else None
        norm = incident.grad_norm if incident is not None else None
        if any(value is not None and not math.isfinite(value) for value in (then, norm)):
            reason = (
                "neither weights nor samples explain it: suspect the hardware of a worker"
                if not replay.inexact
                else "it may need the run's own precision or device, or hardware was at fault"
            )
            yield f"cause     the step is finite here, and was not in the run: {reason}"
        yield "samples   the largest losses (in training, in their micro-batch, unmixed; alone: in evaluation mode)"
        yield from (f"          {_sample(replay, sample)}" for sample in findings.offenders[:_SHOWN])
        return
    for blame in findings.blames:
        yield from _blame(replay, blame)
    more = len(findings.failing) - len(findings.blames)
    if more > 0:
        yield f"          and {more} more micro-batches fail: with so many it is hardly their samples"
    if not findings.failing:
        yield "cause     each micro-batch is finite by itself, their sum is not: the numbers are too large"


def _blame(replay: Replay, blame: MicroBatchFindings) -> Iterator[str]:
    yield f"cause     micro-batch {blame.number}: {blame.fault or 'its loss is not finite, though all layers are'}"
    search, unit = blame.search, "pair" if blame.mixed else "sample"
    one = len(search.culprits) == 1
    if search.culprits:
        rest = {
            True: "; without it the micro-batch is fine" if one else "; without them the micro-batch is fine",
            False: "; what is left still fails, so there are more",
            None: "",
        }[search.rest_is_fine]
        found = f"1 {unit} fails by itself" if one else f"{len(search.culprits)} {unit}s fail by themselves"
        yield f"samples   {found}, found by {search.runs} re-runs of parts of the micro-batch{rest}"
    else:
        yield (
            f"samples   no single {unit} fails by itself ({search.runs} re-runs of parts of the micro-batch): "
            f"{len(search.group)} of them together do"
        )
    yield from (f"          {_sample(replay, sample)}" for sample in blame.culprits[:_SHOWN])


def _sample(replay: Replay, sample: SampleLoss) -> str:
    facts = sample_facts(replay, sample)
    replaced = " (replaced by a neighbour)" if sample.replaced else ""
    return (
        f"sample {sample.sample} of epoch {sample.epoch}: {facts['key']!r}, {facts['class']}, {facts['shard']}; "
        f"micro-batch {sample.number}, place {sample.place}; loss {_shown(sample.loss)}, alone "
        f"{_shown(sample.alone)}{replaced}"
    )


def sample_facts(replay: Replay, sample: SampleLoss) -> dict[str, Any]:
    """Returns the known facts of a sample; numbers that are not finite are text."""
    split, manifest = replay.loader.split, replay.record.manifest
    shard, _ = split.locate(sample.sample)
    label = split.label(sample.sample)
    name = manifest.classes[label] if manifest.task == "classification" else manifest.task
    facts = {name: _json(value) for name, value in asdict(sample).items()}
    return {**facts, "key": split.key(sample.sample), "class": name, "shard": split.shards[shard].file}


def write_report(replay: Replay, output: Path) -> list[Path]:
    """Write `RUN-step-N.png`, the samples to look at, and `RUN-step-N.json` into the folder `output`.

    Raises:
        DataError: they can't be written.
    """
    stem = output / f"{replay.record.run.name}-step-{replay.record.step}"
    sheet, record = Path(f"{stem}.png"), Path(f"{stem}.json")
    try:
        output.mkdir(parents=True, exist_ok=True)
        _sheet(replay).save(sheet)
        text = json.dumps(as_json(replay), indent=2, allow_nan=False)
        write_atomically(record, text.encode() + b"\n")
    except OSError as error:
        raise DataError(f"can't write into {output}: {error.strerror or error}") from None
    return [sheet, record]


def as_json(replay: Replay) -> dict[str, Any]:
    """All of it, with every sample of the step."""
    record, findings = replay.record, replay.findings
    incident = record.incident
    recorded = {
        "incident": None if incident is None else incident.path.name,
        "incident_loss": _json(incident.loss if incident else None),
        "incident_grad_norm": _json(incident.grad_norm if incident else None),
        "logged": None if record.logged is None else _tree(asdict(record.logged)),
    }
    return {
        "run": record.run.name,
        "step": record.step,
        "attempt": record.attempt,
        "weights": {"kind": replay.start.kind, "step": replay.start.step, "location": replay.start.location},
        "inexact": replay.inexact,
        "inexact_sums": replay.inexact_sums,
        "lr": replay.lr,
        "loss": _json(replay.loss),
        "grad_norm": _json(replay.grad_norm),
        "window": _tree(replay.window),
        "recorded": recorded,
        "micro_batch_losses": _tree(replay.losses),
        "bad_weights": replay.bad_weights,
        "failing_micro_batches": findings.failing,
        "blames": [_blame_json(replay, blame) for blame in findings.blames],
        "payloads_compared": replay.compared,
        "samples": [sample_facts(replay, sample) for sample in findings.samples],
    }


def _blame_json(replay: Replay, blame: MicroBatchFindings) -> dict[str, Any]:
    return {
        "micro_batch": blame.number,
        "fault": None if blame.fault is None else asdict(blame.fault),
        "search": asdict(blame.search),
        "mixed": blame.mixed,
        "culprits": [sample_facts(replay, sample) for sample in blame.culprits],
    }


def _sheet(replay: Replay) -> Any:
    record = replay.record
    # In the place of a damaged sample another one of the micro-batch was used.
    chosen = [sample for sample in replay.findings.offenders if not sample.replaced][:_ON_SHEET]
    guilty = any(blame.culprits for blame in replay.findings.blames)
    what = "samples that make the step fail" if guilty else "samples with the largest losses"
    return contact_sheet(
        [_cell(replay, sample) for sample in chosen],
        ROOM["classification"],
        columns=_COLUMNS,
        title=f"{record.run.name}, step {record.step}",
        subtitle=f"{len(chosen)} {what} · loss {_shown(replay.loss)}",
    )


def _cell(replay: Replay, sample: SampleLoss) -> Cell:
    facts = sample_facts(replay, sample)
    image, _ = replay.loader.split.image(sample.sample)
    picture = resized(image, fit(image.size, ROOM["classification"]))
    return Cell(picture, f"{facts['class']} · loss {sample.loss:.3g}", str(facts["key"]))


def _shown(value: float) -> str:
    """Nine digits tell any two float32 numbers apart."""
    return f"{value:.9g}"


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _tree(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tree(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_tree(item) for item in value]
    return _json(value)
