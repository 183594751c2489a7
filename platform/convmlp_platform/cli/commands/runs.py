"""Commands on a run's records: checkpoints, goodput, report, replay-tracking."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.cli.common import RUN_HELP, add_price, fail, given_price
from convmlp_platform.errors import ConfigError
from data_prep.console import stored_size

if TYPE_CHECKING:
    from convmlp_platform.checkpoints.inventory import CheckpointRow


def add_checkpoints(commands: Any) -> None:
    """Add `checkpoints list | verify | export` to the parser's commands."""
    parser = commands.add_parser("checkpoints", help="list, verify or export a run's checkpoints")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="steps, sizes and what is recorded with them")
    verify = actions.add_parser("verify", help="read every byte and compare it with the manifests")
    export = actions.add_parser("export", help="write the weights alone to a safetensors file")
    for action, call in ((listing, _list), (verify, _verify), (export, _export)):
        action.add_argument(
            "place", metavar="RUN", help=f"{RUN_HELP}; or a URL, or one checkpoint's folder or URL"
        )
        action.set_defaults(call=call)
    listing.add_argument(
        "--mlflow",
        action="store_true",
        help="as MLflow has them, removed ones too, the best evaluation first",
    )
    export.add_argument("output", type=Path, metavar="FILE.safetensors")
    export.add_argument(
        "--weights", choices=["ema", "model"], help="default: the moving average if there is one"
    )


def _list(arguments: argparse.Namespace) -> int:
    if arguments.mlflow:
        return _list_mlflow(arguments.place)
    from convmlp_platform.checkpoints.inventory import list_checkpoints
    from convmlp_platform.runs.find_run import find_run_or_url

    for row in list_checkpoints(find_run_or_url(arguments.place)):
        print(_line(_evaluated(row)))
    return 0


def _list_mlflow(place: str) -> int:
    from convmlp_platform.config.sections.task_section import BEST_METRICS, best_score
    from convmlp_platform.runs.find_run import find_run
    from convmlp_platform.runs.run_folder import stored_job
    from convmlp_platform.tracking.mlflow.checkpoint_models import list_models

    run = find_run(place)
    task = stored_job(run).get("task")
    name = task.get("name") if isinstance(task, dict) else None
    judged_by = BEST_METRICS.get(str(name), BEST_METRICS["classification"])
    for model in list_models(run, f"eval/{judged_by}"):
        best, loss = best_score(model.metrics), model.metrics.get("eval/loss")
        score = "not evaluated" if best is None else f"{best[0]} {best[1]:.2f} %"
        shown = "" if loss is None else f"  loss {loss:.4f}"
        print(f"step {model.step:>9}  {model.state:<9}  {score}{shown}  {model.location}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from convmlp_platform.checkpoints.inventory import verify_checkpoints
    from convmlp_platform.runs.find_run import find_run_or_url

    problems = []
    for row in verify_checkpoints(find_run_or_url(arguments.place)):
        print(_line(_evaluated(row), whole="whole"), flush=True)
        problems += [row.problem] if row.problem else []
    return fail("\n".join(problems), 1) if problems else 0


def _export(arguments: argparse.Namespace) -> int:
    from convmlp_platform.checkpoints.inventory import export_checkpoint
    from convmlp_platform.runs.find_run import find_run_or_url

    place = find_run_or_url(arguments.place)
    facts = export_checkpoint(place, arguments.output, arguments.weights)
    print(f"{arguments.output}: {facts['weights']} weights after step {facts['step']} of {facts['source']}")
    return 0


def _evaluated(row: CheckpointRow) -> CheckpointRow:
    """With what the run's record says of its evaluation, where the checkpoint lies in a run's folder."""
    from convmlp_platform.training.evaluation.evaluation_record import RECORD, metrics_of

    record = Path(row.location).parents[1] / RECORD
    if row.metrics or row.problem or not record.is_file():
        return row
    return replace(row, metrics=metrics_of(record, row.step, row.attempt))


def _line(row: CheckpointRow, whole: str = "") -> str:
    from convmlp_platform.config.sections.task_section import best_score

    if row.problem:
        return f"step {row.step:>9}  DAMAGED  {row.location}"
    epoch = "" if row.epoch is None else f"  epoch {row.epoch:.2f}"
    best = best_score(row.metrics or {})
    score = "" if best is None else f"  {best[0]} {best[1]:.2f} %"
    return (
        f"step {row.step:>9}{epoch}{score}  {stored_size(row.bytes)} in {row.files} files  {whole}".rstrip()
    )


def add_goodput(commands: Any) -> None:
    """Add `goodput` to the parser's commands."""
    parser = commands.add_parser(
        "goodput",
        help="where a run's time went, what interrupted it, and what it cost",
        description="Every second of every worker, while a driver was up, is of one class: useful steps, evaluation, "
        "waiting for data, checkpoints, compile, restart, lost work, idle. It can be asked for while the run goes on.",
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--json", action="store_true", help="for programs; times in seconds of workers")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw what each worker did (.png, .svg, .pdf)"
    )
    add_price(parser)
    parser.set_defaults(call=_goodput)


def _goodput(arguments: argparse.Namespace) -> int:
    from convmlp_platform.goodput.account import account_of
    from convmlp_platform.goodput.report_text import report_lines
    from convmlp_platform.runs.find_run import find_run

    run = find_run(arguments.run).resolve()
    try:
        found = account_of(run, given_price(arguments))
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


def add_replay_tracking(commands: Any) -> None:
    """Add `replay-tracking` to the parser's commands."""
    parser = commands.add_parser(
        "replay-tracking", help="send what a run or preparation recorded to MLflow, where it is missing"
    )
    parser.add_argument(
        "run_dir",
        metavar="RUN",
        help=f"{RUN_HELP}; or an evaluation's or a prepared dataset's",
    )
    parser.set_defaults(call=_replay_tracking)


def _replay_tracking(arguments: argparse.Namespace) -> int:
    from convmlp_platform.runs.find_run import RUNS, find_run
    from convmlp_platform.tracking.mlflow.replayer import replay

    folder = find_run(arguments.run_dir, (RUNS, "evaluations", "data"), "run, evaluation or dataset")
    print(f"MLflow has all that was recorded: run {replay(folder)}")
    return 0


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
    print(f"{path}: {stored_size(path.stat().st_size)}")
    if arguments.open == "yes" or (arguments.open == "auto" and _has_desktop()):
        import webbrowser

        webbrowser.open(path.as_uri())
    return 0


def _has_desktop() -> bool:
    """Whether somebody sits before this terminal who would see a window."""
    remote = any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY", "CI"))
    shown = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and shown and not remote
