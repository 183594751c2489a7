"""Plays three first hours by the documentation's commands alone, and says the seconds of each.

Own photos to a prediction; three networks compared on (a part of) CIFAR-10, and one's report; two nodes of which one
dies. With $CONVMLP_TEST_DATA real images take the place of made-up ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from walk import can_be_apart, walk

HOURS = {
    "own photos -> model -> prediction": "README.md#Your own data in five lines",
    "three networks compared on CIFAR-10, the report read": "docs/evaluation.md#Sweep",
    "two Ray nodes: submit, watch, kill one, read goodput": "docs/operations.md#Two nodes on one machine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Play them one after the other; 1 where a command of one failed, 2 where they can't be played."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=10, help="of each of four classes; default: 10")
    parser.add_argument("--only", type=int, choices=range(1, len(HOURS) + 1), help="one of them")
    given = parser.parse_args(arguments)
    if not can_be_apart():
        print("first hours: unshare gives no network and processes of their own here", file=sys.stderr)
        return 2
    good = True
    for number, (what, place) in enumerate(HOURS.items(), start=1):
        if given.only in (None, number):
            print(f"{number}. {what} ({place})", flush=True)
            steps = walk(place, brought=given.photos)
            wall, cpu = sum(step.seconds for step in steps), sum(step.cpu_seconds for step in steps)
            print(f"{wall:7.1f} s  {cpu:6.1f} of CPU  together\n", flush=True)
            good &= bool(steps) and all(step.code == 0 for step in steps)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
