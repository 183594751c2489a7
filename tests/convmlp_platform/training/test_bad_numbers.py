"""Runs with numbers that go wrong, and runs that are told to stop.

A step that comes before the last save is durable puts off its own. Where a test counts on a step's checkpoint, each is
evaluated, too: an evaluation waits for it.
"""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import Poison
from prepared import few_digits
from ranks import run_ranks
from test_run import distance, job, weights

from convmlp_platform.checkpoints.checkpointer import load
from convmlp_platform.checkpoints.layout import step_name
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import NumbersError
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import metric_history
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.guard.guard import Action
from convmlp_platform.training.guard.incidents import read_incidents
from convmlp_platform.training.run import RunResult, run
from convmlp_platform.training.stop_request import StopRequest

MICRO_BATCHES = 4  # of a step, on one rank


class Heard(Callback):
    """Remembers what went wrong."""

    def __init__(self) -> None:
        self.bad: list[BadStep] = []

    def on_bad_step(self, bad: BadStep, state: Any) -> None:
        self.bad.append(bad)

    @property
    def actions(self) -> list[tuple[int, str]]:
        return [(bad.step, bad.action.value) for bad in self.bad]


def short(root: Path, **over: Any) -> TrainJob:
    return job(root, training__max_steps=8, **over)


def poisoned_run(values: TrainJob, poison: Poison) -> tuple[RunResult | None, Heard, str]:
    heard = Heard()
    with poison.planted():
        try:
            return run(values, [heard]), heard, ""
        except NumbersError as error:
            return None, heard, str(error)


def assert_equal(found: RunResult | None, wanted: RunResult) -> None:
    assert found is not None
    tensors = weights(found)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(wanted).items())


def assert_proven(root: Path, steps: int = 8) -> None:
    report = check_ledger(root / "runs" / "tiny", dataset=few_digits())
    assert report.ok, report.lines()
    assert report.steps == steps


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(short(tmp_path_factory.mktemp("undisturbed")))


def test_a_fault_of_the_machine_is_cured_by_computing_again(tmp_path: Path, undisturbed: RunResult) -> None:
    result, heard, _ = poisoned_run(short(tmp_path), Poison(lambda n: n in (1, 21)))
    assert heard.actions == [(0, "accept"), (4, "accept")]
    assert_equal(result, undisturbed)
    assert_proven(tmp_path)
    incidents = read_incidents(tmp_path / "runs" / "tiny" / "incidents")
    assert [(found.kind, found.step, found.facts["loss"]) for found in incidents] == [
        ("non_finite", 0, "nan"),
        ("non_finite", 4, "nan"),
    ]
    metrics = metric_history(journal_path(tmp_path / "runs" / "tiny"))
    counted = [
        (step, values["numbers/recomputed"]) for step, values in metrics if "numbers/recomputed" in values
    ]
    assert counted == [(0, 1.0), (4, 2.0)]


@pytest.mark.slow
def test_a_poisonous_sample_is_skipped_and_nothing_moves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = short(tmp_path, checkpoint__every_steps=1, checkpoint__keep=9, eval__every_steps=1)
    result, heard, _ = poisoned_run(values, Poison(lambda n: n == 3 * MICRO_BATCHES + 2, sticky=True))
    assert heard.actions == [(3, "skip")]
    assert result is not None
    assert result.steps == 8
    assert len(heard.bad[0].samples) == values.training.micro_batch_size
    folder = tmp_path / "runs" / "tiny"
    before, after = (load(folder / "checkpoints" / step_name(step)) for step in (3, 4))
    for group, tensors in before.tensors.items():
        assert all(torch.equal(after.tensors[group][name], tensor) for name, tensor in tensors.items())
    assert before.facts["updates"] == after.facts["updates"] == 3
    assert after.facts["samples_seen"] == 4 * values.training.global_batch_size
    (incident,) = read_incidents(folder / "incidents")
    assert incident.weights is not None
    assert [math.isfinite(float(str(m["loss"]))) for m in incident.micro_batches] == [True, True, False, True]
    assert_proven(tmp_path)
    assert "step 3: loss nan, gradient norm nan; also when computed again; skipped" in capsys.readouterr().out


def test_numbers_that_stay_wrong_roll_back_and_then_stop_with_all_that_is_known(
    tmp_path: Path, undisturbed: RunResult
) -> None:
    values = short(tmp_path, eval__every_steps=2, guard={"max_skips": 1, "max_rollbacks": 1})
    result, heard, error = poisoned_run(values, Poison(lambda n: n >= 5 * MICRO_BATCHES))
    assert result is None
    assert heard.actions == [(5, "skip"), (6, "rollback"), (4, "skip"), (5, "stop")]
    assert heard.bad[1].back_to == 4
    folder = tmp_path / "runs" / "tiny"
    assert "step 5 is wrong, also when computed again after 2 skipped steps and 1 rollbacks" in error
    assert f"convmlp replay --run {folder} --step 5" in error
    assert str(read_incidents(folder / "incidents")[-1].path) in error
    assert json.loads((folder / "rollbacks.json").read_text())["total"] == 1
    again, _, _ = poisoned_run(values, Poison(lambda n: False))
    assert_equal(again, undisturbed)
    assert_proven(tmp_path)


def test_a_rollback_takes_the_run_back_to_where_it_would_have_been(
    tmp_path: Path, undisturbed: RunResult
) -> None:
    """What was wrong goes away by itself; the ledger proves exactly-once across the rollback."""
    first, both = 5 * MICRO_BATCHES, range(2 * MICRO_BATCHES)
    values = short(tmp_path, eval__every_steps=2, guard={"on_non_finite": "rollback"})
    result, heard, _ = poisoned_run(values, Poison(lambda n: n - first in both))
    assert heard.actions == [(5, "rollback")]
    assert_equal(result, undisturbed)
    assert_proven(tmp_path)
    assert [span.start for span in check_ledger(tmp_path / "runs" / "tiny").spans] == [0, 4]


def test_without_a_checkpoint_from_before_there_is_no_way_back(tmp_path: Path) -> None:
    values = short(tmp_path, guard={"on_non_finite": "rollback"})
    _, heard, error = poisoned_run(values, Poison(lambda n: n >= 0))
    assert heard.actions == [(0, "stop")]
    assert "step 0 is wrong" in error


def test_a_spike_is_judged_by_the_losses_before_it(tmp_path: Path) -> None:
    values = short(tmp_path, guard={"on_spike": "skip", "spike_window": 3})
    poison = Poison(lambda n: n == 5 * MICRO_BATCHES, sticky=True, factor=1e4)
    result, heard, _ = poisoned_run(values, poison)
    assert [(bad.kind, bad.step, bad.action) for bad in heard.bad] == [("spike", 5, Action.SKIP)]
    assert result is not None
    losses = load(result.checkpoint or "").facts["guard"]["losses"]
    assert len(losses) == 3
    assert max(losses) < 10


def rank_told_to_stop(values: TrainJob, rank: int | None) -> RunResult:
    """A run of which one rank gets a SIGTERM after its fourth step."""

    class Terminated(Callback):
        def on_log(self, metrics: dict[str, float], state: Any) -> None:
            if state.step == 4 and rank is not None and int(os.environ["RANK"]) == rank:
                os.kill(os.getpid(), signal.SIGTERM)

    stop = StopRequest()
    with stop.listening():
        return run(values, [Terminated()], stop=stop)


Poisoned = tuple[RunResult | None, list[tuple[int, str]], str]


def poisoned_rank(values: TrainJob) -> Poisoned:
    """Rank 1's second micro-batch of step 3 is wrong for good."""
    chosen = 3 * MICRO_BATCHES // 2 + 1 if os.environ["RANK"] == "1" else -1
    result, heard, error = poisoned_run(values, Poison(lambda n: n == chosen, sticky=True))
    return result, heard.actions, error


def on_two_ranks(root: str) -> tuple[list[RunResult], Poisoned]:
    """The same run undisturbed, stopped and started again; and one with a poisonous sample."""
    rare, home = {"checkpoint__every_steps": 100}, Path(root)
    stopped = [
        rank_told_to_stop(short(home / folder, **rare), rank)
        for folder, rank in (("whole", None), ("parts", 1), ("parts", None))
    ]
    return stopped, poisoned_rank(short(home / "poisoned"))


@pytest.mark.slow
def test_what_one_of_two_ranks_hears_or_sees_all_act_on_alike(tmp_path: Path) -> None:
    by_rank = run_ranks(on_two_ranks, 2, str(tmp_path))
    for (_, stopped, ended), (result, actions, _) in by_rank:
        assert (stopped.stopped, stopped.steps) == ("SIGTERM", 5)
        assert (ended.stopped, ended.steps) == (None, 8)
        assert actions == [(3, "skip")]
        assert result is not None
        assert result.steps == 8
    whole, _, ended = by_rank[0][0]
    assert_equal(ended, whole)
    assert_proven(tmp_path / "parts")
    assert_proven(tmp_path / "poisoned")
    (incident,) = read_incidents(tmp_path / "poisoned" / "runs" / "tiny" / "incidents")
    assert [math.isfinite(float(str(m["loss"]))) for m in incident.micro_batches] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"strategy": "fsdp"}, *({"strategy": "deepspeed", "zero_stage": n} for n in (1, 2, 3))]
)
def test_the_ladder_under_sharded_strategies(
    tmp_path: Path, undisturbed: RunResult, settings: dict[str, Any]
) -> None:
    values = short(tmp_path, engine=settings, guard={"on_non_finite": "rollback"})
    result, actions, _ = run_ranks(poisoned_everywhere, 2, values)[0]
    assert actions == [(5, "rollback")]
    assert result is not None
    assert distance(weights(result), weights(undisturbed)) < 1e-3
    assert_proven(tmp_path)


def poisoned_everywhere(values: TrainJob) -> Poisoned:
    """Step 5 and its second computation are wrong on both of two ranks, and never again."""
    first, both = 5 * MICRO_BATCHES // 2, range(MICRO_BATCHES)
    result, heard, error = poisoned_run(values, Poison(lambda n: n - first in both))
    return result, heard.actions, error
