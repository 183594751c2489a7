"""Plain and averaged weights are both judged where they may differ much; the better are kept, and it is said which."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from test_run import job, trained

from convmlp_platform.checkpoints.checkpointer import load
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.models.bundle import read_spec
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import metric_history
from convmlp_platform.training.callbacks import Console
from convmlp_platform.training.evaluation import evaluate
from convmlp_platform.training.evaluation.evaluate import (
    Weights,
    judges_both,
    merit,
    scores_of,
    taken_weights,
)
from convmlp_platform.training.run import run
from convmlp_platform.training.step_plan import TrainState

NAN = float("nan")


def both(average: float, plain: float, taken: float) -> dict[str, float]:
    names = ("eval/top1", "eval_average/top1", "eval_plain/top1")
    return dict(zip(names, (taken, average, plain), strict=True))


@pytest.mark.parametrize(
    ("metrics", "averages", "weights"),
    [
        ({"eval/top1": 5.0}, True, "average"),
        ({"eval/top1": 5.0}, False, "plain"),
        (both(48.5, 88.7, 88.7), True, "plain"),
        (both(88.7, 48.5, 88.7), True, "average"),
        (both(50.0, 50.0, 50.0), True, "average"),
        (both(NAN, 50.0, 50.0), True, "plain"),
        (both(NAN, NAN, NAN), True, "average"),
    ],
)
def test_metrics_say_which_weights_they_are_of(
    metrics: dict[str, float], averages: bool, weights: Weights
) -> None:
    assert taken_weights(metrics, averages=averages) == weights


def test_scores_are_told_apart() -> None:
    metrics = both(1.0, 2.0, 2.0)
    assert scores_of(metrics) == {"top1": 2.0}
    assert (scores_of(metrics, "average"), scores_of(metrics, "plain")) == ({"top1": 1.0}, {"top1": 2.0})
    assert scores_of({"eval/top1": 5.0}, "plain") == {}


@pytest.mark.parametrize(
    ("decay", "updates", "last", "answer"),
    [
        (0.998, 340, False, True),
        (0.998, 4999, False, True),
        (0.998, 5001, False, False),
        (0.998, 5001, True, True),
        (0.99996, 249_999, False, True),
        (0.99996, 250_002, False, False),
        (None, 10, True, False),
    ],
)
def test_both_are_judged_while_the_average_reaches_far_back_and_at_the_end(
    decay: float | None, updates: int, last: bool, answer: bool
) -> None:
    average = None if decay is None else SimpleNamespace(decay=decay)
    engine: Any = SimpleNamespace(ema=average, updates=updates)
    assert judges_both(engine, last=last) is answer


@pytest.fixture(params=["as they are", "the worse for the better"])
def preferred(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way one kind of weights is taken, so that both kinds are."""
    if request.param != "as they are":
        monkeypatch.setattr(evaluate, "merit", lambda metrics, best: tuple(-x for x in merit(metrics, best)))
    return str(request.param)


taken_so_far: dict[str, str] = {}


def test_the_weights_that_are_taken_are_kept_and_recorded(
    tmp_path: Path, preferred: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _ = trained(job(tmp_path, training__max_steps=8))
    weights = kept_weights(tmp_path, result.checkpoint)
    assert weights == taken_weights(result.best, averages=True)
    average, plain = scores_of(result.metrics, "average"), scores_of(result.metrics, "plain")
    assert average != plain
    assert scores_of(result.metrics) == {"average": average, "plain": plain}[weights]
    history = dict(metric_history(journal_path(tmp_path / "runs" / "tiny")))
    assert history[8].items() >= result.metrics.items()
    assert f"; {weights} taken" in capsys.readouterr().out
    taken_so_far[preferred] = weights
    assert len(set(taken_so_far.values())) == len(taken_so_far)


def kept_weights(root: Path, checkpoint: str | None) -> str:
    """What the best model's bundle says of its weights, which are the checkpoint's of that name."""
    best = root / "runs" / "tiny" / "best"
    weights = str(read_spec(best).provenance["weights"])
    assert checkpoint is not None
    groups, kept = load(checkpoint).tensors, load_file(best / "model.safetensors")
    wanted = groups[{"average": "ema", "plain": "model"}[weights]]
    assert all(torch.equal(kept[name], wanted[name]) for name in kept)
    other = groups[{"average": "model", "plain": "ema"}[weights]]
    assert not all(torch.equal(kept[name], other[name]) for name in kept)
    return weights


# Either kind of weights: `test_the_weights_that_are_taken_are_kept_and_recorded`.
@pytest.mark.parametrize(
    "preferred",
    ["as they are", pytest.param("the worse for the better", marks=pytest.mark.slow)],
    indirect=True,
)
def test_killed_before_the_bundle_is_written_the_next_start_writes_the_same_weights(
    tmp_path: Path, preferred: str
) -> None:
    values = job(tmp_path, training__max_steps=8)
    first, _ = trained(values)
    folder = tmp_path / "runs" / "tiny"
    before = (folder / "best" / "model.safetensors").read_bytes(), read_spec(folder / "best")
    for file in (folder / "best").iterdir():
        file.unlink()
    (folder / "best").rmdir()
    record = folder / "evaluations.jsonl"
    lines = [line for line in record.read_text().splitlines() if "metrics" in json.loads(line)]
    record.write_text("".join(f"{line}\n" for line in lines))
    again, _ = trained(values)
    assert again.best == first.best
    assert before == ((folder / "best" / "model.safetensors").read_bytes(), read_spec(folder / "best"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [{}, {"strategy": "fsdp"}, *({"strategy": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3))],
)
@pytest.mark.parametrize("worse", [False, True])
def test_so_under_every_strategy(tmp_path: Path, engine: dict[str, Any], worse: bool) -> None:
    values = job(tmp_path, engine=engine, training__max_steps=4)
    ((checkpoint, figures), other) = run_ranks(run_preferring, 2, values, worse)
    assert figures == other[1]
    kept_weights(tmp_path, checkpoint)
    alone, _ = trained(job(tmp_path / "alone", training__max_steps=4))
    for prefix in ("eval_average/loss", "eval_plain/loss"):
        assert figures[prefix] == pytest.approx(alone.metrics[prefix], rel=1e-3)


def run_preferring(values: TrainJob, worse: bool) -> tuple[str | None, dict[str, float]]:
    if worse:
        evaluate.merit = lambda metrics, best: tuple(-x for x in merit(metrics, best))  # type: ignore[assignment, return-value]
    result = run(values)
    return result.checkpoint, result.metrics


def test_the_console_says_both_figures(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(10.0)
    metrics = both(48.5, 88.7, 88.7)
    console.on_evaluation(metrics, TrainState(step=20, best=metrics))
    console.on_evaluation({"eval/top1": 3.0}, TrainState(step=30))
    assert capsys.readouterr().out.splitlines() == [
        "evaluation after epoch 2.0: top1 88.70 %  (best so far)",
        "  average of the weights: top1 48.50 %; plain: top1 88.70 %; plain taken",
        "evaluation after epoch 3.0: top1 3.00 %",
    ]


def test_a_run_without_an_average_judges_once(tmp_path: Path) -> None:
    result, _ = trained(job(tmp_path, training__max_steps=2, training__ema_decay=None))
    assert result.metrics.keys() == {"eval/loss", "eval/top1", "eval/top5"}
    assert read_spec(tmp_path / "runs" / "tiny" / "best").provenance["weights"] == "plain"
