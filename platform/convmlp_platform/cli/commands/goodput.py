"""The command goodput: where a run's time went."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from convmlp_platform.cli.common import fail
from convmlp_platform.errors import ConfigError


def add_commands(commands: Any) -> None:
    """Add it to the parser's commands."""
    parser = commands.add_parser(
        "goodput",
        help="where a run's time went, what interrupted it, and what it cost",
        description="Every second of every worker, while a driver was up, is of one class: useful steps, evaluation, "
        "waiting for data, checkpoints, compile, restart, lost work, idle. It can be asked for while the run goes on.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, e.g. runs/NAME")
    parser.add_argument("--json", action="store_true", help="for programs; times in seconds of workers")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw what each worker did (.png, .svg, .pdf)"
    )
    parser.add_argument(
        "--price",
        type=_price,
        metavar="NUMBER",
        help="of a worker's hour, instead of the job's price_per_gpu_hour",
    )
    parser.add_argument("--currency", default="USD", metavar="NAME", help="of --price (default: USD)")
    parser.set_defaults(call=_goodput)


def _goodput(arguments: argparse.Namespace) -> int:
    from convmlp_platform.goodput.account import Price, account_of
    from convmlp_platform.goodput.report_text import report_lines

    run = _folder(arguments.run)
    price = None if arguments.price is None else Price(arguments.price, arguments.currency)
    try:
        found = account_of(run, price)
    except OSError as error:
        return fail(f"{error.filename or run}: can't be read: {error.strerror}", ConfigError.exit_code)
    if found is None:
        return fail(
            f"{run} has no record of time (neither events.jsonl nor goodput/): training hasn't begun, or an older "
            "release did it",
            ConfigError.exit_code,
        )
    if arguments.plot is not None:
        from convmlp_platform.goodput.goodput_picture import plot

        try:
            plot(run.name, found, arguments.plot)
        except (OSError, ValueError) as error:
            return fail(f"--plot {arguments.plot}: {error}", ConfigError.exit_code)
    if arguments.json:
        print(json.dumps({"run": run.name} | found.to_dict(), indent=2))
    else:
        print("\n".join(report_lines(run.name, found)))
    return 0


def _folder(name: str) -> Path:
    """The run's folder: as given, else one in runs/ below the root.

    Raises:
        ConfigError: there is none.
    """
    from convmlp_platform.config.paths import root

    given = Path(name).expanduser()
    below = root() / "runs" / name
    for folder in (given, below):
        if folder.is_dir():
            return folder.resolve()
    known = sorted(path.parent.name for path in below.parent.glob("*/run.json"))
    there = f"; {below.parent} holds {', '.join(known)}" if known else ""
    raise ConfigError(f"no run {name}: neither a folder of that name nor {below}{there}")


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0.0 <= price < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0, not {text!r}")
    return price
