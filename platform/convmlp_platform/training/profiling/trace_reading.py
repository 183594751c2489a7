"""The facts in a trace of torch.profiler: where the time of its steps went, by part, operator and device.

Kineto's trace is a list of events with `ts` and `dur` in microseconds. The parts of a step are spans of ours on the
main thread. A kernel belongs to the part in which the host launched it, whichever thread did: backward runs in a
thread of autograd's, while the main thread waits in its span.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
Interval = tuple[float, float]

SPAN = "convmlp."
"""Before the name of a part's span."""
REST = "rest of the step"
_STEP = "ProfilerStep#"
_SPANS = ("user_annotation", "gpu_user_annotation")
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_COMMUNICATES = re.compile(r"^(nccl|gloo)[:A-Z]|^ncclDevKernel", re.IGNORECASE)
_COLLECTIVE_OPS = ("c10d::", "record_param_comms")
_SHAPES = 3
"""Tensors whose shapes are named: of a convolution's backward, gradient, input and weights."""


@dataclass
class Operator:
    """Calls of one operator with inputs of these shapes; `self_s`: host seconds without those of operators that it
    calls, `device_s`: of the kernels that it launched itself."""

    name: str
    shapes: str
    calls: int = 0
    self_s: float = 0.0
    device_s: float = 0.0


@dataclass(frozen=True)
class TraceFacts:
    """Sums over `steps` steps, in seconds of one rank.

    `parts`: the main thread's time by part of the step; they add up to `seconds`. `device_parts`: of the device's
    kernels, by the part that launched them; empty on a CPU. `communication_s`: in which a collective ran;
    `exposed_s`: of that, in which nothing else did. `memory`: (seconds since the start, bytes allocated by PyTorch on
    the device), on a CPU beyond what was there before; `peaks`: the most of it by part.
    """

    steps: int
    seconds: float
    parts: dict[str, float]
    device_parts: dict[str, float]
    device_busy_s: float
    communication_s: float
    exposed_s: float
    operators: list[Operator]
    memory: list[tuple[float, int]] = field(repr=False)
    peaks: dict[str, int]


def read_trace(events: Sequence[Event]) -> TraceFacts:
    """Returns the facts in `traceEvents`.

    Raises:
        ValueError: no step is in it.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    steps = [event for event in complete if _is_step(event)]
    if not steps:
        raise ValueError("the trace holds no step")
    main, begin = steps[0]["tid"], min(float(step["ts"]) for step in steps)
    end = max(map(_end, steps))
    spans = [
        event
        for event in complete
        if event.get("cat") == "user_annotation" and event["tid"] == main and _part(event) is not None
    ]
    segments = _segments(spans)
    parts: dict[str, float] = defaultdict(float)
    for left, right, part in segments:
        parts[part] += (right - left) / 1e6
    kernels = [event for event in complete if event.get("cat") in _ON_DEVICE]
    part_at = _part_at(segments)
    communicating = _communication(complete, bool(kernels))
    computing = (
        [_interval(event) for event in kernels if not _COMMUNICATES.match(event["name"])]
        if kernels
        else [
            _interval(event) for event in complete if event.get("cat") == "cpu_op" and not _collective(event)
        ]
    )
    memory, peaks = _memory(events, part_at, on_device=bool(kernels), begin=begin)
    return TraceFacts(
        steps=len(steps),
        seconds=(end - begin) / 1e6,
        parts=dict(parts),
        device_parts=_device_parts(complete, kernels, part_at),
        device_busy_s=_length(_union(map(_interval, kernels))) / 1e6,
        communication_s=_length(communicating) / 1e6,
        exposed_s=_length(_without(communicating, _union(computing))) / 1e6,
        operators=_operators(complete, kernels),
        memory=memory,
        peaks=peaks,
    )


def _is_step(event: Event) -> bool:
    return event.get("cat") == "user_annotation" and str(event["name"]).startswith(_STEP)


def _part(event: Event) -> str | None:
    name = str(event["name"])
    if name.startswith(SPAN):
        return name.removeprefix(SPAN)
    return REST if name.startswith(_STEP) else None


def _interval(event: Event) -> Interval:
    return float(event["ts"]), _end(event)


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


def _collective(event: Event) -> bool:
    return str(event["name"]).startswith(_COLLECTIVE_OPS)


def _segments(spans: Iterable[Event]) -> list[tuple[float, float, str]]:
    """Stretches of time and the innermost span that each is in, in order."""
    marks = sorted(
        (mark for event in spans for mark in ((_end(event), 0, event), (float(event["ts"]), 1, event))),
        key=lambda mark: (mark[0], mark[1], -float(mark[2]["dur"])),
    )
    found: list[tuple[float, float, str]] = []
    open_spans: list[Event] = []
    last = 0.0
    for now, begins, event in marks:
        if open_spans and now > last:
            found.append((last, now, str(_part(open_spans[-1]))))
        if begins:
            open_spans.append(event)
        else:
            open_spans[:] = [other for other in open_spans if other is not event]
        last = now
    return found


def _part_at(segments: Sequence[tuple[float, float, str]]) -> Callable[[float], str]:
    begins = [begin for begin, _, _ in segments]

    def part_at(moment: float) -> str:
        place = bisect_right(begins, moment) - 1
        return segments[place][2] if place >= 0 and moment <= segments[place][1] else REST

    return part_at


def _device_parts(
    complete: Sequence[Event], kernels: Sequence[Event], part_at: Callable[[float], str]
) -> dict[str, float]:
    launched = {
        event["args"]["correlation"]: float(event["ts"])
        for event in complete
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        if _COMMUNICATES.match(kernel["name"]):
            part = "communication"
        else:
            part = part_at(launched.get(kernel.get("args", {}).get("correlation"), -1.0))
        found[part] += float(kernel["dur"]) / 1e6
    return dict(found)


def _communication(complete: Sequence[Event], on_device: bool) -> list[Interval]:
    kinds = _ON_DEVICE if on_device else ("user_annotation",)
    named = (event for event in complete if event.get("cat") in kinds and _COMMUNICATES.match(event["name"]))
    return _union(map(_interval, named))


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)


def _without(intervals: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The stretches of `intervals` that no one of `others` covers; both are unions."""
    found, place = [], 0
    for begin, end in intervals:
        while place < len(others) and others[place][1] <= begin:
            place += 1
        at, now = place, begin
        while at < len(others) and others[at][0] < end:
            if others[at][0] > now:
                found.append((now, others[at][0]))
            now = max(now, others[at][1])
            at += 1
        if now < end:
            found.append((now, end))
    return found


def _operators(complete: Sequence[Event], kernels: Sequence[Event]) -> list[Operator]:
    """By operator and its inputs' shapes; the dearest first: by device time where there is a device, else by the
    host's own."""
    found: dict[tuple[str, str], Operator] = {}
    by_id: dict[Any, Operator] = {}
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in complete:
        if event.get("cat") == "cpu_op":
            threads[event["tid"]].append(event)
    for events in threads.values():
        stack: list[tuple[float, Operator]] = []
        for event in sorted(events, key=lambda event: (float(event["ts"]), -float(event["dur"]))):
            while stack and stack[-1][0] <= float(event["ts"]):
                stack.pop()
            name, shapes = str(event["name"]), _shapes(event)
            operator = found.setdefault((name, shapes), Operator(name, shapes))
            operator.calls += 1
            operator.self_s += float(event["dur"]) / 1e6
            if stack:
                stack[-1][1].self_s -= float(event["dur"]) / 1e6
            stack.append((_end(event), operator))
            by_id[event.get("args", {}).get("External id")] = operator
    for kernel in kernels:
        launcher = by_id.get(kernel.get("args", {}).get("External id"))
        if launcher is None:
            launcher = found.setdefault((kernel["name"], ""), Operator(str(kernel["name"])[:80], ""))
            launcher.calls += 1
        launcher.device_s += float(kernel["dur"]) / 1e6
    return sorted(found.values(), key=lambda operator: (-operator.device_s, -operator.self_s))


def _shapes(event: Event) -> str:
    dims = event.get("args", {}).get("Input Dims", [])
    tensors = ["x".join(map(str, shape)) for shape in dims if shape and isinstance(shape[0], int)]
    return " ".join(tensors[:_SHAPES])


def _memory(
    events: Sequence[Event], part_at: Callable[[float], str], *, on_device: bool, begin: float
) -> tuple[list[tuple[float, int]], dict[str, int]]:
    points, peaks = [], dict[str, int]()
    for event in events:
        args = event.get("args", {})
        if event.get("name") != "[memory]" or (args.get("Device Type") != 0) is not on_device:
            continue
        moment, held = float(event["ts"]), int(args.get("Total Allocated", 0))
        points.append(((moment - begin) / 1e6, held))
        part = part_at(moment)
        peaks[part] = max(peaks.get(part, held), held)
    return sorted(points), peaks
