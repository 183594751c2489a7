"""`convmlp report`: all about a run on one page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from convmlp_platform.cli.common import RUN_HELP, add_price, given_price


def add_report(commands: Any) -> None:
    """Add `report` to the parser's commands."""
    parser = commands.add_parser(
        "report",
        help="all about a run on one HTML page",
        description="Write one HTML page that needs no network: curves, what happened when, goodput and its price, "
        "data with the ledger's proof, evaluation, predictions, hardware, lineage. It can be asked for while the run "
        "goes on, and of one that died.",
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run's folder")
    parser.add_argument(
        "--open",
        choices=("auto", "yes", "no"),
        default="auto",
        help="show it in a browser; auto: from a terminal on a desktop",
    )
    add_price(parser)
    parser.set_defaults(call=_report)


def _report(arguments: argparse.Namespace) -> int:
    from convmlp_platform.report.page import write_report
    from convmlp_platform.runs.find_run import find_run

    run = find_run(arguments.run).resolve()
    path = write_report(run, arguments.out, price=given_price(arguments)).absolute()
    print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB")
    if arguments.open == "yes" or (arguments.open == "auto" and _has_desktop()):
        import webbrowser

        webbrowser.open(path.as_uri())
    return 0


def _has_desktop() -> bool:
    """Whether somebody sits before this terminal who would see a window."""
    remote = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY", "CI"))
    shown = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and shown and not remote
