"""The command compare: models side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from convmlp_platform.cli.common import fail
from convmlp_platform.errors import ConfigError, PlatformError


def add_commands(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "compare",
        help="models side by side: accuracy, parameters, MACs, speed",
        description="All figures are those on record; parameters and MACs that no record has are counted by making "
        "the network again, and marked *. Of a training run the best evaluation counts, and `last` is its last.",
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="RUN",
        help="a run's, sweep's or evaluation's name or folder, an MLflow run's id, models:/NAME@ALIAS, or a bundle's "
        "folder",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="to sort by, e.g. top5, loss; default: the first one's task's"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw it over parameters and MACs (.png, .svg, .pdf)"
    )
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from convmlp_platform.evaluation.compare.compare_table import about, label_of, plot, rows, text_table
    from convmlp_platform.evaluation.compare.compared import metric_name
    from convmlp_platform.evaluation.compare.find_compared import COUNTED, find_compared, ordered, warnings_of

    metric = metric_name(arguments.metric) if arguments.metric else None
    lines, problems = [], []
    for text in arguments.what:
        try:
            lines += find_compared(text, metric)
        except PlatformError as error:
            problems.append(str(error))
    if problems:
        return fail("\n".join(problems), ConfigError.exit_code)
    metric, lines = ordered(lines, metric)
    warnings = warnings_of(lines, metric)
    if arguments.plot is not None:
        try:
            drawn = plot(
                lines, metric, arguments.plot, title=f"{label_of(metric)} and cost", subtitle=about(lines)
            )
        except (OSError, ValueError) as error:
            return fail(f"--plot {arguments.plot}: {error}", ConfigError.exit_code)
        if drawn is None:
            warnings.append(
                f"--plot {arguments.plot}: no line has both {metric} and a cost: nothing is drawn"
            )
    if arguments.json:
        values = {"metric": metric, "warnings": warnings, "models": [line.to_dict() for line in lines]}
        print(json.dumps(values, indent=2))
        return 0
    print("\n".join(text_table(rows(lines, metric))))
    if any(line.counted for line in lines):
        print(COUNTED)
    for warning in warnings:
        print(f"warning: {warning}")
    return 0
