"""The parts that all commands share: kinds of arguments, and how errors are printed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from data_prep.console import say_error

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


def add_price(parser: argparse.ArgumentParser) -> None:
    """Add --price and --currency."""
    parser.add_argument(
        "--price",
        type=_price,
        metavar="NUMBER",
        help="of a worker's hour, instead of the job's price_per_gpu_hour",
    )
    parser.add_argument("--currency", default="USD", metavar="NAME", help="of --price (default: USD)")


def given_price(arguments: argparse.Namespace) -> Price | None:
    """The price that the arguments of `add_price` give; None: the job's."""
    from convmlp_platform.goodput.account import Price

    return None if arguments.price is None else Price(arguments.price, arguments.currency)


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0.0 <= price < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0, not {text!r}")
    return price
