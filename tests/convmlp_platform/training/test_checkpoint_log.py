"""A run's checkpoints in MLflow: each once, with its own evaluation, whatever died and however long MLflow was away.

No run here has a replayer: MLflow is away until a test sends the journal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from poison import Poison
from test_bad_numbers import MICRO_BATCHES, Heard
from test_run import job

from convmlp_platform.checkpoints.inventory import list_checkpoints
from convmlp_platform.cli.main import main
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import (
    CheckpointCommitted,
    CheckpointMetrics,
    CheckpointRetired,
    MetricsRecord,
    read_chunk,
)
from convmlp_platform.tracking.mlflow.checkpoint_models import CheckpointModel, list_models
from convmlp_platform.tracking.mlflow.replayer import replay
from convmlp_platform.training.evaluation.evaluation_record import read_evaluations
from convmlp_platform.training.evaluation.evaluations import Evaluations
from convmlp_platform.training.outputs.checkpoint_log import CheckpointLog
from convmlp_platform.training.outputs.outputs import Telemetry
from convmlp_platform.training.run import run


class Killed(BaseException):
    """The process is gone."""


def short(root: Path, steps: int = 8, **over: Any) -> TrainJob:
    """Every second step is saved and evaluated; two checkpoints are kept."""
    saving = {"path": str(root / "runs"), "every_steps": 2, "keep": 2}
    return job(
        root, training__max_steps=steps, checkpoint=saving, eval={"batch_size": 128, "every_steps": 2}, **over
    )


def folder(root: Path) -> Path:
    return root / "runs" / "tiny"


def in_mlflow(root: Path) -> list[CheckpointModel]:
    replay(folder(root))
    return sorted(list_models(folder(root), "eval/top1"), key=lambda model: (model.step, model.state))


def states(models: list[CheckpointModel]) -> list[tuple[int, str]]:
    return [(model.step, model.state) for model in models]


def assert_each_is_there_once(root: Path) -> None:
    models = in_mlflow(root)
    assert states(models) == [(2, "retired"), (4, "retired"), (6, "committed"), (8, "committed")]
    evaluations = {
        line.step: line.metrics
        for line in read_evaluations(folder(root) / "evaluations.jsonl")
        if line.metrics
    }
    assert {model.step: dict(model.metrics) for model in models} == evaluations
    kept = {row.step: row.location for row in list_checkpoints(folder(root))}
    assert {model.step: model.location for model in models if model.state == "committed"} == kept
    records = read_chunk(journal_path(folder(root)), max_bytes=1 << 30).records
    own = [one for one in records if isinstance(one, MetricsRecord) and "eval/loss" in one.values]
    linked = [one for one in records if isinstance(one, CheckpointMetrics)]
    assert [(one.step, one.time, one.values) for one in linked] == [
        (one.step, one.time, one.values) for one in own
    ]
    assert [one.step for one in records if isinstance(one, CheckpointCommitted)] == [2, 4, 6, 8]
    assert [one.step for one in records if isinstance(one, CheckpointRetired)] == [2, 4]


def test_each_checkpoint_is_in_mlflow_with_its_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(short(tmp_path))
    assert_each_is_there_once(tmp_path)
    facts = [
        one.facts for one in read_chunk(journal_path(folder(tmp_path)), max_bytes=1 << 30).records
        if isinstance(one, CheckpointCommitted)
    ]  # fmt: skip
    assert [one["samples_seen"] for one in facts] == ["32", "64", "96", "128"]
    assert [(one["strategy"], one["world_size"], one["attempt"]) for one in facts] == [("ddp", "1", "1")] * 4
    capsys.readouterr()
    assert main(["checkpoints", "list", str(folder(tmp_path)), "--mlflow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.partition("top1 ")[2].partition(" %")[0]) for line in lines]
    assert len(lines) == 4 and scores == sorted(scores, reverse=True)
    assert sum("retired" in line for line in lines) == 2
    assert all(str(folder(tmp_path) / "checkpoints" / "step-00000000") in line for line in lines)


def dies(act: Any) -> Any:
    def dying(*_: Any, **__: Any) -> Any:
        raise Killed

    return dying


def dies_after(act: Any) -> Any:
    def dying(*values: Any, **named: Any) -> Any:
        act(*values, **named)
        raise Killed

    return dying


DEATHS = [
    ("the commit isn't on record", CheckpointLog, "_is_there", dies),
    ("the evaluation isn't on record", Telemetry, "on_evaluation", dies),
    ("it is, and isn't linked", CheckpointLog, "evaluated", dies),
    ("it is linked, and nobody knows", Evaluations, "told", dies),
]


@pytest.mark.slow
def test_killed_between_any_two_records_and_sent_in_pieces_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for steps in (2, 6, 8):  # MLflow gets what there is after the second step, and after the last
        for when, owner, name, dying in DEATHS:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(owner, name, dying(getattr(owner, name)))
                run(short(tmp_path, steps))
                pytest.fail(f"it lived on where {when}")
        if steps == 2:
            assert [model.step for model in in_mlflow(tmp_path)] == [2]
        run(short(tmp_path, steps))
    assert_each_is_there_once(tmp_path)


@pytest.mark.slow
def test_what_was_rolled_back_is_marked_and_done_again_under_its_own_name(tmp_path: Path) -> None:
    spoilt = range(5 * MICRO_BATCHES, 9 * MICRO_BATCHES)
    heard = Heard()
    with Poison(lambda n: n in spoilt).planted():
        run(short(tmp_path, guard={"max_skips": 1, "max_rollbacks": 1}), [heard])
    assert heard.actions == [(5, "skip"), (6, "rollback")]
    models = in_mlflow(tmp_path)
    assert states(models) == [
        (2, "retired"), (4, "retired"), (6, "committed"), (6, "retired"), (8, "committed"),
    ]  # fmt: skip
    lines = [line for line in read_evaluations(folder(tmp_path) / "evaluations.jsonl") if line.metrics]
    first, second = (line.metrics for line in lines if line.step == 6)
    assert [dict(model.metrics) for model in models if model.step == 6] == [second, first]
