"""The parts that all commands share: kinds of arguments, options, and how errors are printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf, nan
from typing import TYPE_CHECKING, Any

from convmlp_platform.errors import ConfigError
from data_prep.console import QUIET, VERBOSE, counted, say_error, settle_loggers

if TYPE_CHECKING:
    from convmlp_platform.goodput.account import Price
    from convmlp_platform.kubernetes.check_job import KubernetesReport
    from convmlp_platform.training.preflight.preparation_preflight import PreflightReport

RUN_HELP = "a run: its name, SWEEP/TRIAL, runs/NAME from here or from CONVMLP_ROOT, or its folder"


def fail(message: str, code: int) -> int:
    """Print each line of a message as an error, without passwords in URLs; returns the exit code."""
    say_error(message)
    return code


def show_report(
    job: object, title: str, report: PreflightReport | KubernetesReport, all_well: str = "no problems found"
) -> int:
    """Print what a check of the job file `job` has found; returns the exit code.

    Args:
        title: the job's kind and name.
        all_well: printed where there is no problem.
    """
    print(f"{job}: {title}")
    for line in report.summary:
        print(f"  {line}")
    if not report.problems:
        print(all_well)
        return 0
    print(f"{counted(len(report.problems), 'problem')}, see below: the job would not start", flush=True)
    return fail("\n".join(f"{job}: {problem}" for problem in report.problems), ConfigError.exit_code)


def positive(text: str) -> int:
    """An argument that must be a whole number from 1."""
    return _whole(text, 1)


def from_zero(text: str) -> int:
    """An argument that must be a whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, not {text!r}")
    return int(text)


def number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    """An argument that must be a number that `fits`; `what`: in words, after "must be"."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
    return value


def share(text: str) -> float:
    """An argument that must be a number from 0 to 1."""
    return number(text, "a number from 0 to 1", lambda value: 0.0 <= value <= 1.0)


def add_overrides(parser: Any, about: str) -> None:
    """Add --set KEY=VALUE, which may be given several times, to a parser or a group of its options."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)


def add_price(parser: argparse.ArgumentParser) -> None:
    """Add --price and --currency."""
    parser.add_argument(
        "--price",
        type=price,
        metavar="NUMBER",
        help="of a worker's hour, instead of the job's price_per_gpu_hour",
    )
    parser.add_argument("--currency", default="USD", metavar="NAME", help="of --price (default: USD)")


def given_price(arguments: argparse.Namespace) -> Price | None:
    """The price that the arguments of `add_price` give; None: the job's."""
    from convmlp_platform.goodput.account import Price

    return None if arguments.price is None else Price(arguments.price, arguments.currency)


def price(text: str) -> float:
    """An argument that must be a number from 0."""
    return number(text, "a number from 0", lambda value: 0.0 <= value < inf)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Give `-q` and `-v` to the program and to each of its commands, and `--version` to the program."""
    parser.add_argument("--version", action=_Version, help="versions of this program, its code and PyTorch")
    for each in (parser, *(own for _, own in all_commands(parser))):
        says = each.add_mutually_exclusive_group()
        help_of = {"-q": "say only results and errors", "-v": "also what helps to find a fault, on stderr"}
        for short, name in (("-q", "--quiet"), ("-v", "--verbose")):
            says.add_argument(
                short, name, action="store_true", default=argparse.SUPPRESS, help=help_of[short]
            )


def all_commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """The words and the parser of every command, groups of commands and those in them."""
    for action in arguments_of(parser):
        for name, own in action.choices.items() if isinstance(action.choices, Mapping) else ():
            yield (*words, name), own
            yield from all_commands(own, (*words, name))


def arguments_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """The options and arguments that a parser takes, also those in groups. Its commands are one of them, whose
    `choices` are a mapping. argparse documents no way to ask.
    """
    return parser._actions


def say_as_much(arguments: argparse.Namespace) -> None:
    """Say as much as `-q` or `-v` ask for, in this process and in those that a job starts."""
    if getattr(arguments, "quiet", False):
        os.environ |= {QUIET: "1", VERBOSE: ""}
    if getattr(arguments, "verbose", False):
        os.environ |= {VERBOSE: "1", QUIET: ""}
    settle_loggers()


class _Version(argparse.Action):
    """Prints `version_line` and ends."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=options.get("help"))

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(version_line())
        parser.exit()


def version_line() -> str:
    """`convmlp 0.1.0 (commit 1a2b3c4d5e6f, changed), torch 2.15.0, Python 3.11.9`; torch isn't imported."""
    from importlib.metadata import PackageNotFoundError, version

    from convmlp_platform.tracking.environment_tags import environment_tags

    try:
        own = version("convmlp-platform")
    except PackageNotFoundError:
        own = "not installed"
    tags = environment_tags()
    changed = ", changed" if tags.get("git.dirty") == "true" else ""
    commit = f" (commit {tags['git.commit'][:12]}{changed})" if "git.commit" in tags else ""
    return (
        f"convmlp {own}{commit}, torch {tags.get('torch.version', 'not installed')}, "
        f"Python {tags['python.version']}"
    )
