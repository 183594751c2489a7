"""`make chaos`: one training run on a two-node Ray cluster of this machine, beaten until it should break.

    python tests/chaos/run_chaos.py [--faults 20] [--seed 7] [--elastic] [--only "kill -9 worker"] [--out FILE]

The job is trained once undisturbed, then under random faults: workers, agents, nodes and the driver killed, stuck and
told to stop, killed in evaluation and in registration, disks full, writes refused, the dataset's storage away, a shard
deleted, the clock set back, two drivers at once, a NaN. It must end by itself after its planned steps; the ledger must
prove that each sample was used exactly once, the final weights must be the undisturbed run's, bit for bit, MLflow must
have all that the journal has, and no process or temporary file may be left. With
`--elastic` the run goes on with one worker while a node is away, and the final loss is compared.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/prepared.py

from chaos_faults import FAULTS, draw_faults
from chaos_play import Blow, Play, undisturbed
from chaos_proof import (
    check_events,
    check_goodput,
    check_mlflow,
    check_no_one_left,
    check_nothing_left,
    check_samples,
    compare_ends,
    final_checkpoint,
    weights_hash,
)
from chaos_run import Run
from chaos_site import JOB, ChaosError, Site, chaos_site, settings_of

from convmlp_platform.checkpoints.checkpointer import Checkpoint
from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.training.step_plan import StepPlan

STEPS_PER_EPOCH, EVALUATED_EPOCHS = 22, 4
"""1,438 digits in batches of 64 are 22.5 steps."""
STEPS_PER_FAULT, STEPS_PER_ELASTIC_FAULT = 30, 150
"""The elastic run goes on while a node comes back and its worker warms up."""


@dataclass
class Outcome:
    """What a whole play came to; no problems: the run is unkillable, as far as these faults go."""

    seed: int
    elastic: bool
    steps: int
    hash: str
    """Of the undisturbed run's end."""
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    blows: list[Blow] = field(default_factory=list)
    ledger: list[str] = field(default_factory=list)
    goodput: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def job_settings(steps: int, **settings: object) -> dict[str, object]:
    """Frequent saves and evaluations, and budgets that many faults don't use up."""
    return {
        "training__epochs": -(-steps // STEPS_PER_EPOCH),
        "training__max_steps": steps,
        "training__log_every_steps": 1,
        "eval__every_epochs": EVALUATED_EPOCHS,
        "checkpoint__every_steps": 8,
        "launch__restarts__hardware": -1,
        "launch__restarts__hang": -1,
        "data__shuffle_block": 4,  # more blocks than a process keeps open: an outage is noticed
    } | settings


def play(
    site: Site,
    faults: Sequence[str],
    seed: int,
    job: dict[str, object],
    expected: Checkpoint,
    *,
    elastic: bool,
) -> Outcome:
    """Train `job` under `faults`, and compare its end with the `expected` one."""
    outcome = Outcome(seed, elastic, expected.step, weights_hash(expected))
    run = Run(site, "chaos", site.command("chaos", **job))
    given = load_job(JOB, settings_of("chaos", site.data, site.disk.path, **job))
    assert isinstance(given, TrainJob)
    plan = StepPlan(given, open_manifest(given.data.path).splits[given.data.train_split].num_samples)
    performance = Play(site, run, faults, expected.step, seed, plan)
    started = time.monotonic()
    try:
        if code := performance.perform():
            raise ChaosError(f"the command ended with {code}\n{run.last_words()}")
        outcome.problems += check_events(run)
        end = final_checkpoint(site.checkpoints("chaos"), run.folder)
        outcome.problems += compare_ends(expected, end, bitwise=not elastic)
        outcome.ledger, wrong = check_samples(run)
        outcome.problems += wrong
        outcome.goodput, wrong = check_goodput(run)
        outcome.problems += wrong + check_no_one_left(run) + check_nothing_left(run) + check_mlflow(run)
    except ChaosError as error:
        outcome.problems.append(str(error))
    outcome.seconds, outcome.blows = round(time.monotonic() - started, 1), performance.blows
    outcome.problems += [f"{b.fault} at step {b.step}: {p}" for b in outcome.blows for p in b.problems]
    if performance.deck:
        outcome.problems.append(f"faults that never came: {performance.deck}")
    return outcome


def table(outcome: Outcome) -> str:
    """One line a fault, in Markdown."""
    lines = [
        "| fault | on | at step | told | detected after | next step after | of that: parts | lost steps |",
        "|---|---|---:|---|---:|---:|---|---:|",
    ]
    for blow in outcome.blows:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in blow.parts.items())
        cells = [blow.fault, blow.target or "-", blow.step, blow.told or "-", _s(blow.detected_s)]
        cells += [_s(blow.resumed_s), parts or "-", "-" if blow.lost_steps is None else blow.lost_steps]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _s(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="how many")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="just these, in this order")
    parser.add_argument("--elastic", action="store_true", help="one worker will do while a node is away")
    parser.add_argument("--out", type=Path, help="write what happened as JSON")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it there")
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # else the cluster would be cleared up after, the disk not
    folder = options.keep or Path(tempfile.mkdtemp(prefix="convmlp-chaos-"))
    try:
        # One node has room for both workers, unless one worker shall go on alone.
        cpus = 1 if options.elastic else 2
        with chaos_site(folder.absolute(), cpus, remote_data=True) as site:
            faults = options.only or draw_faults(options.faults, random.Random(options.seed), site)
            if impossible := [name for name, fault in FAULTS.items() if not fault.possible(site)]:
                print(f"not possible on this machine, left out: {', '.join(impossible)}", flush=True)
            each = STEPS_PER_ELASTIC_FAULT if options.elastic else STEPS_PER_FAULT
            job = job_settings(each * len(faults) + 2 * STEPS_PER_EPOCH)
            started = time.monotonic()
            expected = undisturbed(Run(site, "undisturbed", site.command("undisturbed", **job)))
            quiet = round(time.monotonic() - started, 1)
            print(f"undisturbed: {quiet} s, {expected.step} steps", flush=True)
            job |= {"launch__min_workers": 1} if options.elastic else {}
            job |= {"tracking__register_as": "{name: chaos, automatic: true}"}
            outcome = play(site, faults, options.seed, job, expected, elastic=options.elastic)
            outcome.undisturbed_seconds = quiet
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table(outcome)}\n")
    print("\n".join(outcome.ledger))
    print(
        f"{len(outcome.blows)} faults in {outcome.steps} steps and {outcome.seconds} s "
        f"(undisturbed {outcome.undisturbed_seconds} s), seed {outcome.seed}"
    )
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}")
    if options.out:
        options.out.write_text(json.dumps(asdict(outcome), indent=2))
    print("failed" if outcome.problems else "all as it must be")
    return bool(outcome.problems)


if __name__ == "__main__":
    sys.exit(main())
