"""The parts that all commands share: kinds of arguments, and how errors are printed."""

from __future__ import annotations

import argparse
import sys

from data_prep.console import printable
from data_prep.storage.urls import scrubbed


def fail(message: str, code: int) -> int:
    """Print each line of a message as an error, without passwords in URLs; returns the exit code."""
    for line in printable(scrubbed(message)).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


def say(line: str) -> None:
    """Print a line of progress at once."""
    print(line, flush=True)


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
