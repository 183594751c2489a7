"""The parts that all commands share: kinds of arguments, options, and how errors are printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_prep.console import QUIET, VERBOSE, say_error, settle_loggers

if TYPE_CHECKING:
    from convmlp_platform.goodput.account import Price

RUN_HELP = "a run: its name, SWEEP/TRIAL, runs/NAME from here or from CONVMLP_ROOT, or its folder"


def fail(message: str, code: int) -> int:
    """Print each line of a message as an error, without passwords in URLs; returns the exit code."""
    say_error(message)
    return code


def positive(text: str) -> int:
    """An argument that must be a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def share(text: str) -> float:
    """An argument that must be a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


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
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0, not {text!r}")
    return value


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
