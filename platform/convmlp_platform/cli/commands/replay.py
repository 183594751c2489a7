"""`convmlp replay`: one step of a run done again on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convmlp_platform.cli.common import RUN_HELP, add_overrides, from_zero
from data_prep.console import say

_DESCRIPTION = """\
Do one step of a run again on this machine, and look into it: weights, batch and random numbers are rebuilt as they
were, whatever number of workers the run had. Its weights are those that were kept with the step's incident, or come
from the newest checkpoint before it and the steps since, which are done again. Each image is compared with the
checksum that the run's ledger has of it. Nothing in the run's folder or in MLflow is changed.

Printed are loss and gradient norm beside those on record, how exact the replay is and why, the loss of each
micro-batch, and the samples to look at: if the step isn't finite those that make it so, found by re-running parts of
the micro-batch, and the first layer that isn't; else those with the largest losses.
"""

_EPILOG = """\
examples:
  convmlp replay --run pretrain-digits --step 120
  convmlp replay --run runs/pretrain-digits --step 120 --output pictures
  convmlp replay --run /mnt/runs/imagenet --step 81234 --set data.path=/data/imagenet

A run on one CPU worker in fp32 is replayed to the last bit. One of several workers has the same micro-batches, and
sums them in another order; GPUs, bf16 and other releases of torch round differently: the replay says which it is.
"""


def add_commands(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "replay",
        help="do one step of a run again on this machine, to the last bit, and find the samples to blame",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run",
        required=True,
        metavar="RUN",
        help=RUN_HELP,
    )
    parser.add_argument(
        "--step",
        required=True,
        type=from_zero,
        metavar="N",
        help="counted from 0, as in incidents and the ledger; metrics logged under step S are of steps up to S - 1",
    )
    parser.add_argument(
        "--incident",
        type=from_zero,
        metavar="NUMBER",
        help="look into this incident of the step (default: its newest, if it has one)",
    )
    parser.add_argument(
        "--attempt",
        type=from_zero,
        metavar="NUMBER",
        help="the step as this start of the run did it, also if it was rolled back since",
    )
    parser.add_argument(
        "--from-start",
        action="store_true",
        help="do all steps from the run's first again, not those since a checkpoint",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    add_overrides(
        parser, "another value for the run's job, e.g. data.path=/data/imagenet; none that decides the result"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="also write a contact sheet of the samples to look at, and everything as JSON with all sample ids",
    )
    parser.set_defaults(call=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from convmlp_platform.runs.find_run import find_run

    run = find_run(arguments.run)  # before PyTorch is imported
    from convmlp_platform.replay.replay_report import report_lines, write_report
    from convmlp_platform.replay.replay_step import replay

    done = replay(
        run,
        arguments.step,
        device=arguments.device,
        overrides=arguments.set,
        incident=arguments.incident,
        attempt=arguments.attempt,
        from_start=arguments.from_start,
        say=say,
    )
    print("\n".join(report_lines(done)))
    if arguments.output is not None:
        print("written   " + "\n          ".join(map(str, write_report(done, arguments.output))))
    return 0
