"""A profile on one page, as Markdown: where a step's time goes, the dearest operators, memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convmlp_platform.training.profiling.trace_reading import Operator, TraceFacts
from data_prep.console import memory_size

_OPERATORS = 20
_ORDER = (
    *("data wait", "first step", "forward", "backward", "rest of forward and backward"),
    *("agreement of ranks", "optimizer", "checkpoint", "evaluation", "rest of the step"),
)


@dataclass(frozen=True)
class ProfileFacts:
    """The facts that a trace lacks.

    `usual_step_s`: a step before the profile began, without it; None where there was none but the process's first.
    `resident`: bytes that the process had in memory at the end, and its peak until then.
    """

    run: str
    model: str
    steps: tuple[int, int]
    rank: int
    world_size: int
    hardware: str
    torch_version: str
    strategy: str
    precision: str
    images_a_step: int
    usual_step_s: float | None
    step_s: float
    resident: tuple[int, int]
    device_peak: int | None


def page(facts: ProfileFacts, trace: TraceFacts, files: Sequence[str]) -> str:
    """Returns the whole page; `files` lie beside it."""
    lines = [
        f"# Profile of {facts.run}, steps {facts.steps[0]} to {facts.steps[1] - 1}, rank {facts.rank} of "
        f"{facts.world_size}",
        "",
        f"{facts.model}, {facts.strategy}, {facts.precision}; {facts.images_a_step} images a step on this rank; "
        f"{facts.hardware}; torch {facts.torch_version}.",
        _slower(facts),
        "",
        *_parts(trace),
        "",
        *_operators(trace),
        "",
        *_memory(facts, trace),
        "",
        "## Files",
        "",
        *(f"- `{name}`: {_PURPOSE[name]}" for name in files),
    ]
    return "\n".join(lines) + "\n"


_PURPOSE = {
    "trace.json.gz": "every operator, and kernel, on a time line: open it in Perfetto or chrome://tracing",
    "memory.json": "bytes allocated over time",
    "memory_snapshot.pickle": "every allocation with its Python stack: open it in PyTorch's memory viewer",
}


def _slower(facts: ProfileFacts) -> str:
    if facts.usual_step_s is None:
        return (
            f"A step took {_ms(facts.step_s)} while it was recorded; there was none before to compare with."
        )
    ratio = facts.step_s / facts.usual_step_s
    return (
        f"A step took {_ms(facts.step_s)} while it was recorded, {_ms(facts.usual_step_s)} before ({ratio:.2f} times): "
        "recording costs every operator alike, so that many small ones seem dearer than they are."
    )


def _parts(trace: TraceFacts) -> Iterator[str]:
    on_device = bool(trace.device_parts)
    names = [name for name in _ORDER if name in trace.parts]
    names += [name for name in sorted(trace.parts) if name not in names]
    yield "## Where a step's time goes"
    yield ""
    device = " device | of the step |" if on_device else ""
    yield f"| part | {'host' if on_device else 'time'} | of the step |{device}"
    yield f"|---|---:|---:|{'---:|---:|' if on_device else ''}"
    for name in [*names, *(["communication"] if "communication" in trace.device_parts else [])]:
        row = f"| {name} | {_cells(trace.parts.get(name), trace)} |"
        yield row + (f" {_cells(trace.device_parts.get(name, 0.0), trace)} |" if on_device else "")
    yield f"| all | {_ms(trace.seconds / trace.steps)} | 100 % |" + (
        f" {_cells(trace.device_busy_s, trace)} |" if on_device else ""
    )
    yield ""
    if trace.communication_s:
        hidden = 1 - trace.exposed_s / trace.communication_s
        yield (
            f"Communication took {_ms(trace.communication_s / trace.steps)} a step, {hidden:.0%} of it beside "
            f"computing; {_ms(trace.exposed_s / trace.steps)} ({trace.exposed_s / trace.seconds:.1%} of the step) not. "
            "It is part of the rows above: gradients in backward, loss and norm in the agreement of ranks."
        )
    else:
        yield "Communication: none was recorded."
    if on_device:
        yield (
            f"The device was busy for {trace.device_busy_s / trace.seconds:.0%} of the time; a kernel belongs to the "
            "part that launched it."
        )


def _cells(seconds: float | None, trace: TraceFacts) -> str:
    if seconds is None:
        return " | "
    return f"{_ms(seconds / trace.steps)} | {100 * seconds / trace.seconds:.1f} %"


def _operators(trace: TraceFacts) -> Iterator[str]:
    on_device = bool(trace.device_parts)
    yield "## The dearest operators"
    yield ""
    yield (
        "Time without that of operators called within; device time is of the kernels that it launched itself."
        if on_device
        else "Time without that of operators called within."
    )
    yield ""
    device = " device | of the step |" if on_device else ""
    yield f"| operator | inputs | calls a step | {'host' if on_device else 'time'} | of the step |{device}"
    yield f"|---|---|---:|---:|---:|{'---:|---:|' if on_device else ''}"
    shown = trace.operators[:_OPERATORS]
    for operator in shown:
        yield _row(operator, trace, on_device)
    rest = Operator("all others", "")
    for operator in trace.operators[_OPERATORS:]:
        rest.calls += operator.calls
        rest.self_s += operator.self_s
        rest.device_s += operator.device_s
    if rest.calls:
        yield _row(rest, trace, on_device)


def _row(operator: Operator, trace: TraceFacts, on_device: bool) -> str:
    row = (
        f"| {operator.name} | {operator.shapes} | {operator.calls / trace.steps:.4g} "
        f"| {_cells(operator.self_s, trace)} |"
    )
    return row + (f" {_cells(operator.device_s, trace)} |" if on_device else "")


def _memory(facts: ProfileFacts, trace: TraceFacts) -> Iterator[str]:
    now, peak = facts.resident
    yield "## Memory"
    yield ""
    process = (
        f"{memory_size(now)} resident when the profile ended, {memory_size(peak)} at most since its start"
    )
    yield f"The process: {process}."
    if facts.device_peak is not None:
        yield f"The device: {memory_size(facts.device_peak)} allocated at most in these steps."
    if not trace.peaks:
        return
    beyond = "" if trace.device_parts else ", beyond what was there before them"
    yield ""
    yield f"| part | allocated at most{beyond} |"
    yield "|---|---:|"
    for part, held in sorted(trace.peaks.items(), key=lambda item: -item[1]):
        yield f"| {part} | {memory_size(held)} |"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"
