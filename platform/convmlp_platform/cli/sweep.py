"""The command sweep: one job in many settings."""

from __future__ import annotations

import argparse
from typing import Any

from convmlp_platform.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "sweep",
        help="train a job in many settings and compare them (`kind: sweep`)",
        description="Each trial is a whole run, below RUNS/SWEEP. Started again, it goes on: finished trials aren't "
        "repeated, started ones go on from their checkpoints, failed ones are tried again.",
    )
    parser.add_argument("job", metavar="FILE", help="a sweep's file, such as jobs/sweep_cifar10.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a value, e.g. max_concurrent=1, or of the job: job.training.epochs=2",
    )
    parser.set_defaults(call=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from convmlp_platform.config.load import load_job
    from convmlp_platform.config.sweep import SweepJob

    job = load_job(arguments.job, arguments.set)
    if not isinstance(job, SweepJob):
        raise ConfigError(
            f"{arguments.job}: kind: must be sweep (got {job.kind!r}): `convmlp run {arguments.job}` runs this one"
        )
    from convmlp_platform.launch.sweep import launch_sweep

    return launch_sweep(job)
