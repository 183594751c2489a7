"""A run with event files for TensorBoard and callbacks of the user's own, which dies, goes on, and is hurt by none."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import accelerate  # noqa: F401  (looks for wandb when it is imported)
import numpy as np
import pytest
from doc_code import python_blocks
from tensorboardX.proto.event_pb2 import Event
from test_run import job

from convmlp_platform.config.load import parse_job
from convmlp_platform.errors import ConfigError
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import MetricsRecord, metric_history
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.given_callbacks import GuardedCallback, callback_problems
from convmlp_platform.training.guard.incidents import read_incidents
from convmlp_platform.training.outputs import tensorboard
from convmlp_platform.training.run import run
from convmlp_platform.training.step_plan import TrainState

BROKEN = """
from convmlp_platform.training.callbacks import Callback
class Broken(Callback):
    heard = []
    def on_log(self, metrics, state):
        self.heard.append(state.step)
        state.step, metrics["train/loss"] = 10**6, 0.0
        raise RuntimeError("no route to https://me:secret@host/api")
"""


def events(folder: Path) -> Iterator[Event]:
    """All events of a folder's files, as TensorBoard reads them: file by file, by name."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            yield Event.FromString(content[place + 12 : place + 12 + size])
            place += 12 + size + 4


def points(folder: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of all that TensorBoard shows: a start takes back the steps from its own on."""
    found: list[tuple[str, int, float]] = []
    for event in events(folder):
        if event.HasField("session_log"):
            found = [point for point in found if point[1] < event.step]
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found


class Dies(Callback):
    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        if state.step == 6:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, list[Any]]]]:
    """The folder of a run that died after step 6 and went on from step 4; and what W&B was told."""
    root = tmp_path_factory.mktemp("watched")
    (code,) = python_blocks("tracking.md")
    (root / "wandb_callback.py").write_text(code)
    (root / "broken_callback.py").write_text(BROKEN)
    told: dict[str, list[Any]] = {"init": [], "define": [], "log": [], "finish": []}
    wandb: Any = ModuleType("wandb")
    wandb_run = SimpleNamespace(
        define_metric=lambda name, step_metric: told["define"].append((name, step_metric)),
        log=told["log"].append,
        finish=lambda: told["finish"].append(None),
    )
    wandb.init = lambda **given: told["init"].append(given) or wandb_run
    values = job(
        root,
        checkpoint__every_steps=4,
        tracking__tensorboard=True,
        callbacks=["wandb_callback:WandB", "broken_callback:Broken"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        patch.setitem(sys.modules, "wandb", wandb)
        with pytest.raises(KeyboardInterrupt):
            run(values, [Dies()])
        assert sys.modules["broken_callback"].Broken.heard == [2]
        run(values)
        assert sys.modules["broken_callback"].Broken.heard == [2, 6]
    yield root / "runs" / "tiny", told


@pytest.mark.slow
def test_tensorboard_shows_each_point_of_the_record_once(watched: tuple[Path, Any]) -> None:
    run_path, _ = watched
    shown = points(run_path / tensorboard.FOLDER)
    assert len(list((run_path / tensorboard.FOLDER).iterdir())) == 2
    recorded = {(name, step) for step, values in metric_history(journal_path(run_path)) for name in values}
    assert {(name, step) for name, step, _ in shown} == recorded
    last = dict(metric_history(journal_path(run_path)))
    for name, step, value in shown:
        if name.startswith(("train/", "eval/")) and "second" not in name and "wait" not in name:
            assert value == np.float32(last[step][name])
            assert [one[:2] for one in shown].count((name, step)) == 1
    assert [step for name, step, _ in shown if name == "train/loss"] == [2, 4, 6, 8, 10, 12]
    assert [step for name, step, _ in shown if name == "goodput/useful_step"].count(4) == 1


@pytest.mark.slow
def test_a_callback_of_the_users_own_hears_what_the_page_says(watched: tuple[Path, dict[str, Any]]) -> None:
    _, told = watched
    first, second = told["init"]
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert first["config"]["optimizer"]["lr"] == 1e-3
    assert [one["step"] for one in told["log"] if "train/loss" in one] == [2, 4, 6, 6, 8, 10, 12]
    assert any("eval/top1" in one for one in told["log"])
    assert len(told["finish"]) == 1


@pytest.mark.slow
def test_what_raises_is_left_out_and_on_record_once_a_start(watched: tuple[Path, Any]) -> None:
    run_path, _ = watched
    incidents = [one for one in read_incidents(run_path / "incidents") if one.kind == "callback"]
    assert [one.step for one in incidents] == [2, 6]
    assert "callbacks.1 (=broken_callback:Broken): on_log: RuntimeError" in incidents[0].facts["message"]
    traceback = (incidents[0].path / "traceback.txt").read_text()
    assert "broken_callback" in traceback and "secret" not in traceback + incidents[0].facts["message"]


class Recorded:
    """Stands for a tracker."""

    on_metrics: Any = None


def board(folder: RunFolder) -> tuple[GuardedCallback, Recorded]:
    tracker = Recorded()
    made = GuardedCallback(
        "tracking.tensorboard",
        folder,
        lambda: tensorboard.TensorBoard(tracker, folder),  # type: ignore[arg-type]
    )
    return made, tracker


def test_a_disk_that_fills_up_costs_the_files_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watcher, tracker = board(RunFolder(tmp_path, ""))
    watcher.on_start(TrainState(attempt=1), 9)
    tracker.on_metrics(MetricsRecord(step=1, values={"train/loss": float("nan"), "large": 1e300}))
    watcher.on_log({}, TrainState(step=1))
    assert [name for name, _, _ in points(tmp_path / tensorboard.FOLDER)] == ["train/loss", "large"]

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.EventsWriter, "flush", refuse)
    monkeypatch.setattr("convmlp_platform.training.given_callbacks.open_incident", refuse)
    for step in range(2, 5):
        tracker.on_metrics(MetricsRecord(step=step, values={"train/loss": 1.0}))
        watcher.on_log({}, TrainState(step=step))
    (said,) = caplog.messages
    assert "tracking.tensorboard: on_log: OSError" in said and "No space left" in said and "goes on" in said


def test_a_folder_that_can_t_be_made_costs_the_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / tensorboard.FOLDER).write_text("in the way")
    watcher, _ = board(RunFolder(tmp_path, ""))
    watcher.on_start(TrainState(attempt=1), 9)
    watcher.on_end(TrainState(step=9))
    (incident,) = read_incidents(tmp_path / "incidents")
    assert incident.kind == "callback" and len(caplog.messages) == 1


def test_what_is_no_callback_is_refused_with_field_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_callbacks.py").write_text(BROKEN + "value = 1\n")
    (tmp_path / "half_written.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {
        "own_callbacks:Broken": "",
        "no_such_module.part:A": "there is no module 'no_such_module': install it, or put its folder on PYTHONPATH",
        "own_callbacks:Brokn": "module own_callbacks has no 'Brokn'; did you mean Broken?",
        "own_callbacks:value": "value of own_callbacks is no class but a value of int",
        "json:JSONDecoder": "class JSONDecoder is no convmlp_platform.training.callbacks.Callback: derive it from that",
        "half_written:A": "importing half_written fails: ModuleNotFoundError: No module named 'no_such_library'",
    }
    problems = list(callback_problems(job(tmp_path, callbacks=list(named))))
    assert len(problems) == 5
    for number, (name, told) in enumerate(named.items()):
        if told:
            assert problems[number - 1].startswith(f"callbacks.{number} (={name}): {told}")
    with pytest.raises(ConfigError, match=r"callbacks.0: must be package.module:Class \(got 'no colon'\)"):
        parse_job(job(tmp_path).model_dump(mode="json") | {"callbacks": ["no colon"]}, "job.yaml")
