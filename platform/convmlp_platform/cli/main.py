"""The command `convmlp`: a module for each group of commands, which import what they need when they are called.

What a user can fix ends with one line a problem on stderr and exit code 2; all else is a bug, with traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from convmlp_platform.cli import completion
from convmlp_platform.cli.commands import (
    data,
    jobs,
    k8s,
    models,
    overview,
    pictures,
    registry,
    replay,
    runs,
)
from convmlp_platform.cli.common import add_common_options, fail, say_as_much
from convmlp_platform.errors import DataError, PlatformError
from data_prep.console import guarded

_EXAMPLES = """\
examples:
  convmlp run jobs/prep_digits.yaml           prepare a dataset
  convmlp data show digits                    look at it: a contact sheet and a class histogram
  convmlp check jobs/pretrain_digits.yaml     what would be done, and everything that is wrong
  convmlp runs                                all runs: state, step, time left, best metric
  convmlp watch pretrain-digits               one of them, live
  convmlp jobs/pretrain_digits.yaml --set training.epochs=5 --set launch.num_workers=4
  convmlp predict models:/convmlp-digits@champion image.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return guarded(lambda: _main(words))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _main(argv: list[str]) -> int:
    parser, commands = _parser()
    if argv and argv[0] not in commands and _is_job_file(argv[0]):
        argv = ["run", *argv]
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    if not hasattr(arguments, "call"):
        parser.print_help()
        return 0
    say_as_much(arguments)
    try:
        return int(arguments.call(arguments))
    except PlatformError as error:
        return fail(str(error), error.exit_code)
    except ValueError as error:
        from data_prep.errors import DataPrepError

        if not isinstance(error, DataPrepError):
            raise
        return fail(str(error), DataError.exit_code)


def _is_job_file(word: str) -> bool:
    return not word.startswith("-") and (word.endswith((".yaml", ".yml")) or Path(word).is_file())


def _parser() -> tuple[argparse.ArgumentParser, set[str]]:
    parser = argparse.ArgumentParser(
        prog="convmlp",
        description="Prepare image datasets and train ConvMLPs on them, on this machine or a Ray cluster.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    jobs.add_commands(commands)
    models.add_model_list(commands)
    models.add_predict(commands)
    registry.add_commands(commands)
    registry.add_reproduce(commands)
    data.add_commands(commands)
    pictures.add_commands(commands)
    overview.add_commands(commands)
    runs.add_checkpoints(commands)
    replay.add_commands(commands)
    runs.add_goodput(commands)
    runs.add_report(commands)
    jobs.add_sweep_command(commands)
    k8s.add_commands(commands)
    models.add_compare(commands)
    jobs.add_demo(commands)
    runs.add_replay_tracking(commands)
    completion.add_command(commands, parser)
    add_common_options(parser)
    return parser, set(commands.choices)
