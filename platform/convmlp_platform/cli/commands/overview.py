"""Commands that show how runs are: runs, watch."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from typing import Any

from convmlp_platform.cli.common import RUN_HELP, number
from data_prep.console import wants_colour

_INTERRUPTED = 130


def add_commands(commands: Any) -> None:
    """Add `runs` and `watch` to the parser's commands."""
    runs = commands.add_parser(
        "runs",
        help="all runs: state, step, time left, best metric, goodput",
        description="A line for each run below a folder, trials of sweeps too, the one that was heard of last first. "
        "It reads what lies in the runs' folders, whoever drives them and wherever.",
    )
    runs.add_argument(
        "place",
        nargs="?",
        metavar="PLACE",
        help="a folder of runs (default: runs/ below CONVMLP_ROOT), or one run; with --mlflow an experiment's name",
    )
    runs.add_argument(
        "--mlflow", action="store_true", help="the training runs that MLflow knows, wherever they are"
    )
    runs.add_argument("--json", action="store_true", help="for programs: a JSON object a line")
    runs.set_defaults(call=_runs)
    watch = commands.add_parser(
        "watch",
        help="a run's page in the terminal, live, until the run ends",
        description="Exit code: 0 finished, 1 died, 3 stopped; 2 where the run can't be read; 130 after Ctrl-C, which "
        "leaves the run alone; 0 after --once while it goes on. It only reads files, so it works wherever the run's "
        "folder is mounted.",
    )
    watch.add_argument("run", metavar="RUN", help=RUN_HELP)
    watch.add_argument("--once", action="store_true", help="show it once, in plain lines")
    watch.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="S", help="seconds between two looks (default: 2)"
    )
    watch.set_defaults(call=_watch)


def _runs(arguments: argparse.Namespace) -> int:
    from convmlp_platform.overview.runs_table import newest_first, table_lines

    if arguments.mlflow:
        from convmlp_platform.overview.mlflow_runs import mlflow_runs

        rows, where = mlflow_runs(arguments.place), f"in MLflow's {arguments.place or 'experiments'}"
    else:
        from convmlp_platform.overview.find_runs import find_runs, runs_place
        from convmlp_platform.overview.run_overview import overview_of

        place = runs_place(arguments.place)
        rows = [overview_of(found, time.time()) for found in find_runs(place)]
        where = f"below {place}"
    now, rows = time.time(), newest_first(rows)
    if arguments.json:
        for row in rows:
            print(json.dumps(row.to_dict(now)))
    elif rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(table_lines(rows, now, width, coloured=wants_colour())))
    else:
        print(f"no runs {where}")
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    try:
        from convmlp_platform.overview.find_runs import one_run
        from convmlp_platform.overview.watch_run import watch

        run = one_run(arguments.run)
        return watch(run, run.name, once=arguments.once, interval=arguments.interval)
    except KeyboardInterrupt:
        return _INTERRUPTED


def _seconds(text: str) -> float:
    return number(text, "a number of seconds from 0.1 to 3600", lambda value: 0.1 <= value <= 3600.0)
