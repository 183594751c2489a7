"""What people see of a run: metrics between log lines, console lines, curves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from convmlp_platform.distributed import joined_world
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.tracking.journal import MetricsRecord
from convmlp_platform.tracking.journal_digest import JournalDigest
from convmlp_platform.training.callbacks import Console
from convmlp_platform.training.outputs.curves import plot_curves, scores_in
from convmlp_platform.training.step import Meter
from convmlp_platform.training.step_plan import TrainState


def test_the_meter_averages_and_starts_anew() -> None:
    with joined_world(use_gpu=False) as world:
        clock = PhaseClock()
        clock.enter(Phase.COMPUTE)
        meter = Meter(world, 8, clock)
        for loss, norm in ((1.0, 2.0), (3.0, 4.0)):
            meter.add(loss, norm)
        meter.add(math.nan, math.inf, updated=False)
        first = meter.read(lr=0.1)
        meter.add(math.nan, math.inf, updated=False)
        second = meter.read(lr=0.2)
    assert (first["train/loss"], first["train/grad_norm"], first["train/lr"]) == (2.0, 3.0, 0.1)
    assert math.isnan(second["train/loss"])
    assert "train/grad_norm" not in second


def test_time_of_evaluations_does_not_count_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("convmlp_platform.health.heartbeat.phases.time.monotonic", lambda: now[0])
    with joined_world(use_gpu=False) as world:
        clock = PhaseClock()
        meter = Meter(world, 8, clock)
        for phase, seconds in ((Phase.DATA, 0.5), (Phase.COMPUTE, 1.5), (Phase.EVALUATE, 30.0)):
            clock.enter(phase)
            now[0] += seconds
        meter.add(1.0, 1.0)
        metrics = meter.read(lr=0.1)
    assert metrics["train/images_per_second"] == pytest.approx(4.0)
    assert metrics["train/data_wait"] == pytest.approx(0.25)


def test_the_console_says_where_a_run_stands(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(steps_per_epoch=10.0)
    state = TrainState(step=5)
    console.on_start(state, 20)
    state.step = 10
    metrics = {"train/loss": 1.25, "train/lr": 1e-3, "train/images_per_second": 400.4, "train/data_wait": 0.1}
    console.on_log(metrics, state)
    state.best = {"eval/loss": 0.5, "eval/top1": 98.75}
    console.on_evaluation(dict(state.best), state)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training goes on after step 5, until step 20 (2.0 epochs)"
    assert lines[1].startswith(
        "step 10/20  epoch 1.00  loss 1.2500  lr 1.00e-03  400 img/s  data wait 10%  left "
    )
    assert lines[2] == "evaluation after epoch 1.0: loss 0.5000  top1 98.75 %  (best so far)"


def test_curves_are_a_picture(tmp_path: Path) -> None:
    digest = JournalDigest()
    for step in range(1, 2001):
        rare = {"train/lr": 0.1} if step == 1 else {"eval/top1": 50.0} if step == 2 else {}
        digest.take(MetricsRecord(step=step, values={"train/loss": 1.0 / step} | rare))
    assert not digest.series["train/loss"].is_exact and digest.series["eval/top1"].is_exact
    path = plot_curves(digest.series, tmp_path / "plots" / "curves.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


@pytest.mark.parametrize(
    ("metrics", "drawn"),
    [
        ({"eval/loss": 1.0, "eval/top1": 2.0, "eval/top5": 3.0}, ("eval/top1", "eval/top5")),
        ({"eval/box_ap": 1.0, "eval/box_ar10": 1.0, "eval/mask_ap": 1.0}, ("eval/box_ap", "eval/mask_ap")),
        ({"eval/pixel_accuracy": 1.0, "eval/miou": 1.0}, ("eval/miou", "eval/pixel_accuracy")),
        ({"eval/pck": 1.0, "eval/loss": 1.0}, ("eval/pck",)),
        ({"train/loss": 1.0}, ()),
    ],
)
def test_the_scores_of_the_task_are_drawn(metrics: dict[str, float], drawn: tuple[str, ...]) -> None:
    assert scores_in(metrics) == drawn
