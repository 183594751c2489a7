"""The command `registry lineage`: what led to a registered version."""

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
