"""The account of a run as text: a table of classes, what interrupted it, and one line for the end of a job."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from convmlp_platform.goodput.account import Goodput
from convmlp_platform.goodput.interruptions import Interruption
from convmlp_platform.goodput.slices import TimeClass
from data_prep.console import counted, duration

NAMES = {
    TimeClass.USEFUL_STEP: "useful steps",
    TimeClass.EVALUATION: "evaluation",
    TimeClass.DATA_WAIT: "waiting for data",
    TimeClass.CHECKPOINT: "checkpoints",
    TimeClass.COMPILE: "compile (first steps)",
    TimeClass.RESTART: "starts and restarts",
    TimeClass.LOST_WORK: "lost work",
    TimeClass.IDLE: "idle",
}
_LONGEST_MESSAGE = 70


def headline(found: Goodput) -> str:
    """`goodput 91.3 %; 2 interruptions (hardware 1, hang 1) took 1 min 12 s; 16 h 40 min of workers in all`, cost."""
    parts = [f"goodput {100 * found.goodput:.1f} %"]
    if found.interruptions:
        spent = sum(one.seconds for one in found.interruptions)
        parts.append(f"{_counted(found.interruptions)} took {duration(spent)}")
    parts.append(f"{duration(found.total_s)} of workers in all")
    if found.price is not None:
        parts.append(f"cost {amount(found.cost() or 0.0)} {found.price.currency}")
    return "; ".join(parts)


def report_lines(name: str, found: Goodput) -> list[str]:
    """The whole account of the run `name`."""
    return [
        *_summary(name, found),
        "",
        *_classes(found),
        *_by_worker(found),
        *_interrupted(found),
        *_money(found),
    ]


def by_cause(causes: Sequence[str]) -> str:
    """`hardware 2, hang 1`, in the order in which they came first."""
    return ", ".join(f"{cause} {causes.count(cause)}" for cause in dict.fromkeys(causes))


def asked_for(found: Goodput) -> str:
    """The number of workers that drivers asked for: `2`, or `1 to 2`; empty without a driver."""
    numbers = sorted({session.workers for session in found.history.sessions})
    return " to ".join(map(str, dict.fromkeys([*numbers[:1], *numbers[-1:]])))


def amount(money: float) -> str:
    """`12.30`, or `0.0042` of less than one."""
    return f"{money:,.2f}" if money >= 1.0 or money == 0.0 else f"{money:.4f}"


def _summary(name: str, found: Goodput) -> list[str]:
    starts = found.history.starts
    attempts = {file.header.attempt for start in starts for file in start.files}
    lines = [
        f"run {name}: goodput {100 * found.goodput:.1f} %",
        f"  {duration(found.wall_s)} x {counted(asked_for(found), 'worker')} = {found.total_s / 3600:,.3f} worker "
        f"hours; {counted(len(starts), 'start')}, {counted(len(attempts), 'attempt')}",
    ]
    if found.down_s > 0.0:
        lines.append(f"  between drivers, no part of this: {duration(found.down_s)}")
    if found.ending_s > 0.0:
        lines.append(f"  after training had ended, no part of this: {duration(found.ending_s)}")
    if found.unrecorded_s > 0.0:
        share = found.unrecorded_s / found.total_s if found.total_s else 0.0
        lines.append(
            f"  without a record of their own: {duration(found.unrecorded_s)} ({share:.2%}), classified by the other "
            "ranks' records, or else as lost"
        )
    return lines


def _classes(found: Goodput) -> list[str]:
    money = f"{found.price.currency:>12}" if found.price else ""
    lines = [f"  {'class':<22}{'time':>14}{'share':>10}{money}"]
    for kind in TimeClass:
        lines.append(_row(NAMES[kind], found.seconds[kind], found.share(kind), found.cost(kind)))
    lines.append(_row("all", found.total_s, 1.0 if found.total_s else 0.0, found.cost()))
    return lines


def _row(name: str, seconds: float, share: float, cost: float | None) -> str:
    money = "" if cost is None else f"{amount(cost):>12}"
    return f"  {name:<22}{duration(seconds):>14}{100 * share:>8.2f} %{money}"


def _by_worker(found: Goodput) -> list[str]:
    """Only the slowest of many: where workers differ, one of them holds the others up."""
    if len(found.by_worker) < 2:
        return []
    waits = [seconds[TimeClass.DATA_WAIT] for seconds in found.by_worker]
    most = max(range(len(waits)), key=waits.__getitem__)
    usual = median(waits)
    if waits[most] < 0.01 * found.wall_s + 1.5 * usual:
        return []
    return [
        f"  rank {most} waited longest for data: {duration(waits[most])}; the median is {duration(usual)}"
    ]


def _interrupted(found: Goodput) -> list[str]:
    if not found.interruptions:
        return ["", "nothing interrupted it"]
    money = f"{found.price.currency:>10}" if found.price else ""
    lines = [
        "",
        f"{_counted(found.interruptions)}; seconds of all workers together:",
        f"  {'after':>13}  {'cause':<11}{'down':>13}{'found out':>13}{'restart':>13}{'lost work':>13}{money}  what",
    ]
    for one in found.interruptions:
        cost = "" if found.price is None else f"{amount(found.price.of(one.seconds)):>10}"
        down = "" if one.downtime_s is None else duration(one.downtime_s)
        times = f"{duration(one.detection_s):>13}{duration(one.restart_s):>13}{duration(one.lost_s):>13}"
        lines.append(
            f"  {duration(one.time):>13}  {one.cause:<11}{down:>13}{times}{cost}  {_what(one)}".rstrip()
        )
    return lines


def _what(one: Interruption) -> str:
    """The driver's message, which names the culprit."""
    message = " ".join((one.message or "").split())
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[: _LONGEST_MESSAGE - 1].rstrip()}…"


def _money(found: Goodput) -> list[str]:
    price, last, point = found.price, found.cost_of_last_failure, found.cost_per_point
    if price is None:
        return []
    rate = f"{price.per_hour:g} {price.currency} an hour and worker"
    lines = ["", f"cost {amount(found.cost() or 0.0)} {price.currency} at {rate}"]
    if last is not None:
        lines.append(f"  the last failure cost {amount(last)} {price.currency}")
    if point is not None:
        lines.append(
            f"  a point of {found.accuracy_metric} ({found.accuracy:.2f} %) {amount(point)} {price.currency}"
        )
    return lines


def _counted(found: Sequence[Interruption]) -> str:
    return f"{counted(len(found), 'interruption')} ({by_cause([one.cause for one in found])})"
