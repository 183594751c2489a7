"""The commands `registry lineage` and `reproduce`: what led to a registered version, and doing it again."""

from __future__ import annotations

import argparse
import json
from typing import Any

from data_prep.console import say

_VERSION_HELP = "models:/NAME@ALIAS or models:/NAME/VERSION"


def add_lineage(actions: Any) -> None:
    """Add `lineage` to the actions of `registry`."""
    parser = actions.add_parser(
        "lineage",
        help="what led to a version: run, job, code, data, parents, decisions",
        description="The chain behind a version, read from the registry and its runs. What isn't on record is unknown.",
    )
    parser.add_argument("model", metavar="MODEL", help=_VERSION_HELP)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(call=_lineage)


def _lineage(arguments: argparse.Namespace) -> int:
    from convmlp_platform.registry.lineage.lineage_text import lineage_lines
    from convmlp_platform.registry.lineage.read_lineage import read_lineage

    found = read_lineage(arguments.model)
    if arguments.json:
        say(json.dumps(found.facts(), indent=2))
        return 0
    for line in lineage_lines(found):
        say(line)
    return 0


def add_reproduce(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "reproduce",
        help="train a registered version again and compare the weights",
        description="Rebuilds the job from the registry alone, says what is at hand here and what can't be equal, "
        "trains again under a new name, and compares the weights. Exit codes: 0 equal, 3 trained but not equal, 2 it "
        "can't be done. With --check-only: 0 everything is at hand and the same, 3 something differs or is unknown.",
    )
    parser.add_argument("model", metavar="MODEL", help=_VERSION_HELP)
    parser.add_argument("--out", metavar="RUN_NAME", help="of the new run; default: reproduce-NAME-VERSION")
    parser.add_argument(
        "--dataset", metavar="PATH", help="where the dataset lies here; default: where it lay then"
    )
    parser.add_argument("--check-only", action="store_true", help="train nothing")
    parser.add_argument("--no-ray", action="store_true", help="train in this process, with one worker")
    parser.add_argument("--register", action="store_true", help="nominate the result as a candidate")
    parser.add_argument(
        *("--set",),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a value of the rebuilt job, e.g. launch.address=local",
    )
    parser.set_defaults(call=_reproduce)


def _reproduce(arguments: argparse.Namespace) -> int:
    from convmlp_platform.reproduction.rebuild import Wishes
    from convmlp_platform.reproduction.reproduce import reproduce
    from convmlp_platform.runs.find_run import find_run, is_remote

    dataset: str | None = arguments.dataset
    if dataset is not None and not is_remote(dataset):
        dataset = str(find_run(dataset, ("data",), "dataset"))
    wishes = Wishes(arguments.out or "", dataset, arguments.register, tuple(arguments.set))
    return reproduce(arguments.model, wishes, check_only=arguments.check_only, use_ray=not arguments.no_ray)
