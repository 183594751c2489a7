"""`make simulate SEEDS=50`: the supervisor over simulated clusters, two at a time; a run of each seed.

The first is of 1,000 nodes for ten days at the published rate of faults; the others take turns in what is worst for
them. Any of them again, with all its events: `run_simulation.py --again SEED`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

from simulate import NO_LIMIT, Outcome, Scenario, Violation, simulate

from convmlp_platform.health.events import RunEvents

PUBLISHED = Scenario("published rate", nodes=1000, workers=992, least=900, days=10.0)
FEW = NO_LIMIT | {"hardware": 20, "hang": 5, "storage": 10}
HARD = (
    Scenario("10 x published", 256, 252, 200, 0.5, rate=10.0),
    Scenario(
        "spot", 64, 60, 24, 0.5, rate=5.0, repaired_s=(120, 900), per_day={"spot wave": 8, "nodes shut down": 4}
    ),
    Scenario(
        "head and driver", 64, 62, 48, 0.5, rate=10.0,
        per_day={"head down": 8, "driver killed": 4, "driver stopped": 3},
    ),
    Scenario(
        "network", 64, 62, 32, 0.5, rate=5.0,
        per_day={"network splits": 4, "node cut off": 6, "slow messages": 10},
    ),
    Scenario("storage", 64, 64, 48, 0.5, rate=5.0, per_day={"storage out": 12}),
    Scenario("stragglers and hangs", 64, 64, 63, 0.5, repaired_s=(60, 600), per_day={"straggler": 24, "hang": 8}),
    Scenario("default budgets", 128, 126, 96, 0.5, rate=120.0, restarts=FEW),
    Scenario(
        "everything", 32, 31, 16, 0.5, rate=100.0,
        per_day={
            "spot wave": 3, "nodes shut down": 2, "head down": 4, "driver killed": 2, "driver stopped": 2,
            "storage out": 3, "network splits": 2,
        },
    ),
)  # fmt: skip


def scenario_of(seed: int) -> Scenario:
    """The scenario of each seed."""
    return HARD[(seed - 1) % len(HARD)] if seed else PUBLISHED


def run(seed: int) -> Outcome | str:
    """One run; what went wrong as a text."""
    os.environ["CONVMLP_QUIET"] = "1"
    try:
        return simulate(scenario_of(seed), seed)
    except Violation as wrong:
        return f"seed {seed} ({scenario_of(seed).name}): {wrong}"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every run kept what is promised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--again", type=int, metavar="SEED", help="one run alone, told event by event")
    given = parser.parse_args(arguments)
    if given.again is not None:
        return _again(given.again)
    began, found, wrong = time.monotonic(), [], []
    with ProcessPoolExecutor(2) as pool:
        for done in as_completed([pool.submit(run, seed) for seed in range(given.first, given.seeds)]):
            result = done.result()
            (wrong if isinstance(result, str) else found).append(result)
            print(result if isinstance(result, str) else _line(result), flush=True)
    found.sort(key=lambda one: one.seed)
    print(
        "\n".join(
            ["", *_summary(found, wrong), f"{time.monotonic() - began:.0f} s of wall time on two processes"]
        )
    )
    return 1 if wrong else 0


def _again(seed: int) -> int:
    append = RunEvents.append

    def told(events: RunEvents, kind: str, **fields: object) -> None:
        shown = {
            key: value
            for key, value in fields.items()
            if key not in ("hosts", "pids", "pid") and value is not None
        }
        print(f"{events._now() - 1.9e9:12.2f} {kind} {shown}")
        append(events, kind, **fields)

    RunEvents.append = told  # type: ignore[method-assign]
    result = run(seed)
    print(result if isinstance(result, str) else _line(result))
    return int(isinstance(result, str))


def _line(one: Outcome) -> str:
    return (
        f"seed {one.seed:3}  {one.scenario:20}  {one.node_days:7.0f} node-days  goodput {100 * one.goodput:5.2f} %  "
        f"{sum(one.injected.values()):4} faults  {one.attempts:4} attempts  {one.drivers:2} drivers  "
        f"{one.cpu_s:5.1f} CPU-s  {one.digest}  {one.end}"
    )


def _summary(found: Sequence[Outcome], wrong: Sequence[str]) -> Iterator[str]:
    whole = [one for one in found if one.end == "finished"]
    injected = sum((one.injected for one in found), Counter[str]())
    survived = sum((one.injected for one in whole), Counter[str]())
    yield (
        f"{len(found) + len(wrong)} seeds: {len(whole)} runs finished, {len(found) - len(whole)} ended by a budget, "
        f"{len(wrong)} broke a promise"
    )
    yield f"{'fault':22} injected   in runs that finished"
    for kind, count in sorted(injected.items(), key=lambda pair: -pair[1]):
        yield f"  {kind:20} {count:8} {survived[kind]:12}"
    causes = sum((one.causes for one in found), Counter[str]())
    yield "ends of attempts: " + ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
    yield f"{'goodput':22} {'runs':>4} {'least':>8} {'median':>8} {'most':>8}"
    for name in dict.fromkeys(one.scenario for one in found):
        shares = [100 * one.goodput for one in whole if one.scenario == name]
        if shares:
            middle = statistics.median(shares)
            yield f"  {name:20} {len(shares):4} {min(shares):7.2f}% {middle:7.2f}% {max(shares):7.2f}%"
    recoveries = sorted(seconds for one in found for seconds in one.recovery_s if seconds < 600)
    if recoveries:
        ninety = recoveries[int(0.9 * (len(recoveries) - 1))]
        yield f"failure to first step: median {statistics.median(recoveries):.1f} s, 90 % within {ninety:.1f} s"
    slowest = max(
        (
            (seconds, part, one.seed)
            for one in found
            for part, seconds in one.slowest.items()
            if part != "place"
        ),
        default=(0.0, "", 0),
    )
    yield f"slowest operation but waiting for nodes: {slowest[1]}, {slowest[0]:.1f} s (seed {slowest[2]})"
    yield (
        f"{sum(one.node_days for one in found):.0f} node-days, {sum(one.looks for one in found):,} looks, "
        f"{sum(one.reports for one in found):,} reports, {sum(one.cpu_s for one in found):.0f} CPU-seconds; "
        f"{sum(one.orphans for one in found)} processes outlived their attempt where nobody could reach them"
    )
    yield from wrong


def small(scenario: Scenario, days: float) -> Scenario:
    """The same for fewer days."""
    return replace(scenario, days=days)


if __name__ == "__main__":
    sys.exit(main())
