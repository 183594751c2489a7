"""Commands on checkpoints: checkpoints list, verify, export."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.cli.common import fail

if TYPE_CHECKING:
    from convmlp_platform.checkpoints.inventory import CheckpointRow


def add_commands(commands: Any) -> None:
    """Add them to the parser's commands."""
    parser = commands.add_parser("checkpoints", help="list, verify or export a run's checkpoints")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="steps, sizes and what is recorded with them")
    verify = actions.add_parser("verify", help="read every byte and compare it with the manifests")
    export = actions.add_parser("export", help="write the weights alone to a safetensors file")
    for action, call in ((listing, _list), (verify, _verify), (export, _export)):
        action.add_argument(
            "place", metavar="RUN", help="a run's folder or URL, e.g. runs/NAME; or one checkpoint"
        )
        action.set_defaults(call=call)
    export.add_argument("output", type=Path, metavar="FILE.safetensors")
    export.add_argument(
        "--weights", choices=["ema", "model"], help="default: the moving average if there is one"
    )


def _list(arguments: argparse.Namespace) -> int:
    from convmlp_platform.checkpoints.inventory import list_checkpoints

    for row in list_checkpoints(arguments.place):
        print(_line(_evaluated(row)))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from convmlp_platform.checkpoints.inventory import verify_checkpoints

    problems = []
    for row in verify_checkpoints(arguments.place):
        print(_line(_evaluated(row), whole="whole"), flush=True)
        problems += [row.problem] if row.problem else []
    return fail("\n".join(problems), 1) if problems else 0


def _export(arguments: argparse.Namespace) -> int:
    from convmlp_platform.checkpoints.inventory import export_checkpoint

    facts = export_checkpoint(arguments.place, arguments.output, arguments.weights)
    print(f"{arguments.output}: {facts['weights']} weights after step {facts['step']} of {facts['source']}")
    return 0


def _evaluated(row: CheckpointRow) -> CheckpointRow:
    """With what the run's record says of its evaluation, where the checkpoint lies in a run's folder."""
    from convmlp_platform.training.evaluation.evaluations import RECORD, metrics_of

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
        f"step {row.step:>9}{epoch}{score}  {row.bytes / 1e6:,.1f} MB in {row.files} files  {whole}".rstrip()
    )
