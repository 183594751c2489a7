"""What happened to a run and when; where its time went, and what that cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from convmlp_platform.goodput.account import Goodput
from convmlp_platform.goodput.goodput_picture import time_unit
from convmlp_platform.goodput.history import CLEAN, RunStart
from convmlp_platform.goodput.interruptions import Interruption
from convmlp_platform.goodput.report_text import NAMES, amount, asked_for, headline
from convmlp_platform.goodput.slices import TimeClass
from convmlp_platform.report.blocks import (
    Block,
    Drawing,
    FactTable,
    Folded,
    GridTable,
    Sentence,
    cut,
    ends_of,
    minute,
)
from convmlp_platform.report.reported_run import ReportedRun
from convmlp_platform.report.svg_bars import (
    BarPart,
    TimelineBar,
    TimelineLane,
    stacked_bars,
    timeline,
)
from convmlp_platform.tracking.journal_digest import JournalDigest
from convmlp_platform.training.guard.incidents import Incident
from data_prep.console import counted, duration

_MOST_BARS = 24
_Timed = tuple[Incident, float]
"""With seconds since the run's beginning."""
NO_RECORD = "There is no record of its time: training hasn't begun, or an older release did it."


def what_happened(facts: ReportedRun) -> list[Block]:
    """Starts with their ends, checkpoints, evaluations and incidents, on one axis and in a table."""
    found = facts.account
    if found is None:
        return [Sentence(NO_RECORD)]
    starts, origin = _ended(facts, found.history.starts), found.history.origin
    if not starts:
        return [Sentence("No training process was ever started.")]
    whole = max((start.end or start.begin for start in starts), default=0.0)
    divisor, unit = time_unit(whole)
    digest = facts.digest
    incidents = [(one, float(one.facts.get("time", 0.0)) - origin) for one in facts.incidents]
    told = (
        f"{counted(len(starts), 'start')}, {counted(len(found.interruptions), 'interruption')}, "
        f"{counted(digest.checkpoints.count, 'checkpoint')}, {counted(digest.evaluations.count, 'evaluation')}, "
        f"{counted(len(incidents), 'incident')}, in {duration(whole)} from {minute(origin)}"
    )
    lanes = [lane for lane in _lanes(found, starts, digest, incidents) if lane.bars or lane.marks]
    drawn = timeline(lanes, title="What happened when", description=f"{told}.", unit=unit, divisor=divisor)
    blocks: list[Block] = [
        Sentence(f"{told}."),
        Drawing(
            drawn, "Green: ended as it should; red: died or failed; blue: goes on, or its end is unknown."
        ),
        _starts(starts),
    ]
    if digest.retired:
        blocks.append(Sentence(f"{counted(digest.retired, 'checkpoint')} made room for newer ones.", "faint"))
    return blocks + ([_incidents(incidents)] if incidents else [])


def _lanes(
    found: Goodput, starts: Sequence[RunStart], digest: JournalDigest, incidents: Sequence[_Timed]
) -> list[TimelineLane]:
    origin = found.history.origin
    return [
        TimelineLane("training", bars=[_bar(start) for start in starts]),
        TimelineLane(
            "interrupted",
            marks=[(one.time, f"{one.cause}, {duration(one.time)} after the beginning") for one in found.interruptions],
            shape="cross",
        ),
        TimelineLane(
            "checkpoints",
            marks=[(max(0.0, time - origin), f"checkpoint of step {step:,}") for time, step in digest.checkpoints.kept],
        ),
        TimelineLane(
            "evaluations",
            marks=[(max(0.0, time - origin), f"evaluation of step {step:,}") for time, step in digest.evaluations.kept],
            shape="diamond",
        ),
        TimelineLane(
            "incidents",
            marks=[(max(0.0, time), f"{one.kind} at step {one.step:,}") for one, time in incidents],
            shape="triangle",
        ),
    ]  # fmt: skip


def _incidents(incidents: Sequence[_Timed]) -> GridTable:
    rows = [
        [f"{one.number}", duration(max(0.0, time)), one.kind, f"{one.step:,}", cut(str(one.facts.get("message", "")))]
        for one, time in incidents
    ]  # fmt: skip
    head = ["number", "after", "kind", "step", "what"]
    return GridTable("Incidents", head, ends_of(rows), frozenset({0, 1, 3}))


def _ended(facts: ReportedRun, starts: Sequence[RunStart]) -> list[RunStart]:
    """The starts; the last one of a run that says itself that it is finished has that end, whoever saw it."""
    if not starts or starts[-1].cause is not None or facts.state.name != "finished":
        return list(starts)
    return [*starts[:-1], replace(starts[-1], cause="finished")]


def _bar(start: RunStart) -> TimelineBar:
    color = "running" if start.cause is None else "clean" if start.cause in CLEAN else "broken"
    number = "a start" if start.number is None else f"start {start.number}"
    end = start.begin if start.end is None else start.end
    name = f"{number}: {counted(start.world_size, 'worker')}, {duration(end - start.begin)}, {_end(start)}"
    return TimelineBar(start.begin, end, color, name)


def _end(start: RunStart) -> str:
    return "no end on record" if start.cause is None else f"ended: {start.cause}"


def _starts(starts: Sequence[RunStart]) -> GridTable:
    rows = []
    for start in starts:
        first = min((file.header.start_step for file in start.files), default=None)
        last = max((line.step for file in start.files for line in file.lines), default=None)
        rows.append(
            [
                "" if start.number is None else f"{start.number}",
                duration(start.begin),
                duration((start.begin if start.end is None else start.end) - start.begin),
                f"{start.world_size}",
                "" if first is None else f"{first:,}",
                "" if last is None else f"{last:,}",
                _end(start),
                cut(str(start.facts.get("message") or ""), 300),
            ]
        )
    head = ["start", "after", "for", "workers", "from step", "to step", "end", "what"]
    return GridTable("Starts of training", head, ends_of(rows), frozenset(range(6)))


def where_the_time_went(facts: ReportedRun) -> list[Block]:
    """The account that `convmlp goodput` prints, as bars and tables; in money, where there is a price."""
    found = facts.account
    if found is None:
        return [Sentence(NO_RECORD)]
    blocks: list[Block] = [Sentence(_sentence_of(headline(found)))]
    if found.total_s <= 0.0:
        return [*blocks, Sentence("No worker's time is on record.")]
    blocks.append(Drawing(_bars(found), "Where the workers' time went; the table below says the colours."))
    blocks += [_classes(found), _about(found)]
    if found.interruptions:
        blocks += [_price_of_interruptions(found), _interruptions(found)]
    else:
        blocks.append(Sentence("Nothing interrupted it.", "good"))
    if found.price is None:
        blocks.append(
            Sentence(
                "The job names no price (launch.price_per_gpu_hour), so the cost is told in worker hours; "
                "`convmlp report RUN --price NUMBER` tells it in money.",
                "faint",
            )
        )
    if len(found.by_worker) > 1:
        blocks.append(Folded("Each worker", [_workers(found)]))
    return blocks


def _bars(found: Goodput) -> Markup:
    bars = [("all", _parts(found.seconds))]
    if 1 < len(found.by_worker) <= _MOST_BARS:
        bars += [(f"worker {number}", _parts(seconds)) for number, seconds in enumerate(found.by_worker)]
    # Sums of all workers and of one are no lengths to compare: each bar is of its own whole.
    whole = [(label, _scaled(parts)) for label, parts in bars]
    return stacked_bars(whole, title="Where the workers' time went, by class")


def _scaled(parts: Sequence[BarPart]) -> list[BarPart]:
    total = sum(part.size for part in parts) or 1.0
    return [
        BarPart(part.color, part.size / total, f"{part.name} ({part.size / total:.1%})") for part in parts
    ]


def _parts(seconds: dict[TimeClass, float]) -> list[BarPart]:
    return [
        BarPart(f"c-{kind}", seconds[kind], f"{NAMES[kind]} {duration(seconds[kind])}")
        for kind in TimeClass
        if seconds[kind] > 0.0
    ]


def _classes(found: Goodput) -> GridTable:
    money = [f"cost ({found.price.currency})"] if found.price else []
    rows, swatches = [], []
    for kind in TimeClass:
        seconds, cost = found.seconds[kind], found.cost(kind)
        rows.append(
            [NAMES[kind], duration(seconds), f"{100 * found.share(kind):.2f} %", _hours(seconds)]
            + ([] if cost is None else [amount(cost)])
        )
        swatches.append(f"c-{kind}")
    cost = found.cost()
    rows.append(
        ["all", duration(found.total_s), "100.00 %", _hours(found.total_s)] + ([] if cost is None else [amount(cost)])
    )  # fmt: skip
    head = ["class", "time of workers", "share", "worker hours", *money]
    return GridTable(
        "Seconds of all workers, by what they were spent on", head, rows, frozenset(range(1, 5)), swatches
    )


def _about(found: Goodput) -> FactTable:
    rows = [("goodput", f"{100 * found.goodput:.2f} %"), ("time under a driver", duration(found.wall_s))]
    rows.append(("workers", asked_for(found)))
    if found.down_s > 0.0:
        rows.append(("between drivers, no part of this", duration(found.down_s)))
    if found.ending_s > 0.0:
        rows.append(("after training had ended, no part of this", duration(found.ending_s)))
    if found.unrecorded_s > 0.0:
        label = "without a record of their own, classified by other ranks' or as lost"
        rows.append((label, duration(found.unrecorded_s)))
    if found.price is not None:
        rows.append(("price of a worker's hour", f"{found.price.per_hour:g} {found.price.currency}"))
    if found.cost_per_point is not None and found.price is not None and found.accuracy is not None:
        point = f"a point of {found.accuracy_metric} ({found.accuracy:.2f} %)"
        rows.append((point, f"{amount(found.cost_per_point)} {found.price.currency}"))
    return FactTable("The account", rows)


def _price_of_interruptions(found: Goodput) -> Sentence:
    """What the lost seconds were, in a sentence."""
    ones = found.interruptions
    found_out, again = (sum(getattr(one, name) for one in ones) for name in ("detection_s", "restart_s"))
    lost, whole = sum(one.lost_s for one in ones), sum(one.seconds for one in ones)
    cost = "" if found.price is None else f", {amount(found.price.of(whole))} {found.price.currency}"
    return Sentence(
        f"Interruptions took {duration(whole)} of workers{cost}: {duration(found_out)} until they were found out, "
        f"{duration(again)} to start again, and {duration(lost)} of work that was done once more."
    )


def _interruptions(found: Goodput) -> GridTable:
    money = [f"cost ({found.price.currency})"] if found.price else []
    rows = [_interruption(one, found) for one in found.interruptions]
    head = ["after", "cause", "down", "found out", "restart", "lost work", *money, "what"]
    return GridTable(
        "Interruptions; found out, restart and lost work are seconds of all workers together",
        head,
        ends_of(rows),
        frozenset({0, 2, 3, 4, 5}),
    )


def _interruption(one: Interruption, found: Goodput) -> list[str]:
    return [
        duration(one.time),
        one.cause,
        "" if one.downtime_s is None else duration(one.downtime_s),
        duration(one.detection_s),
        duration(one.restart_s),
        duration(one.lost_s),
        *([] if found.price is None else [amount(found.price.of(one.seconds))]),
        cut(one.message or "", 300),
    ]


def _workers(found: Goodput) -> GridTable:
    kinds = [kind for kind in TimeClass if found.seconds[kind] > 0.0]
    rows = [
        [f"{number}", *(duration(seconds[kind]) for kind in kinds)]
        for number, seconds in enumerate(found.by_worker)
    ]
    head = ["worker", *(NAMES[kind] for kind in kinds)]
    return GridTable("Seconds of each worker", head, ends_of(rows), frozenset(range(len(head))))


def _hours(seconds: float) -> str:
    return f"{seconds / 3600.0:,.4f}"


def _sentence_of(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
