"""A step is committed before it is evaluated: whatever dies in an evaluation, no step is trained twice, and each
evaluation is on record once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import few_digits
from ranks import run_ranks
from test_run import job, weights

from convmlp_platform.checkpoints.inventory import list_checkpoints
from convmlp_platform.checkpoints.layout import step_name
from convmlp_platform.cli.main import main
from convmlp_platform.config.load import dump_yaml
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.engine.engine import Engine
from convmlp_platform.errors import SupersededError, TrackingError
from convmlp_platform.health.heartbeat.phases import Phase, PhaseClock
from convmlp_platform.ledger.ledger import claim_attempt
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.models.bundle import load_bundle, read_spec
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import MetricsRecord, read_chunk
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.evaluation import evaluations
from convmlp_platform.training.evaluation.evaluation_record import read_evaluations
from convmlp_platform.training.evaluation.evaluations import Evaluations
from convmlp_platform.training.outputs import outputs
from convmlp_platform.training.outputs.outputs import Telemetry
from convmlp_platform.training.run import RunResult, run
from convmlp_platform.training.stop_request import StopRequest

STEPS, EVERY = 4, 2


class Killed(BaseException):
    """The process is gone."""


def short(root: Path, **over: Any) -> TrainJob:
    """Four steps, evaluated after the second and the last."""
    rare = {"path": str(root / "runs"), "every_steps": 100}
    evaluation = {"batch_size": 10, "every_steps": EVERY}
    return job(root, training__max_steps=STEPS, checkpoint=rare, eval=evaluation, **over)


def trained(values: TrainJob, *callbacks: Callback) -> RunResult:
    return run(values, callbacks)


@pytest.fixture(scope="module", autouse=True)
def always_better() -> Iterator[None]:
    """Each evaluation in this process is better than the one before."""
    judge = evaluations.judge

    def rising(engine: Engine, *given: Any, last: bool) -> dict[str, float]:
        return judge(engine, *given, last=last) | {"eval/top1": 2.0 * engine.updates}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluations, "judge", rising)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    root = tmp_path_factory.mktemp("undisturbed")
    return root, trained(short(root))


def metrics_on_record(root: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and metrics of each evaluation that was recorded, in order."""
    lines = read_evaluations(root / "runs" / "tiny" / "evaluations.jsonl")
    return [(line.step, line.metrics) for line in lines if line.metrics]


def metrics_in_journal(root: Path) -> list[tuple[int, dict[str, float]]]:
    """The same of what MLflow will get: each point of it."""
    records = read_chunk(journal_path(root / "runs" / "tiny"), max_bytes=1 << 30).records
    points = [record for record in records if isinstance(record, MetricsRecord)]
    return [(point.step, point.values) for point in points if "eval/loss" in point.values]


def assert_as_undisturbed(root: Path, found: RunResult, undisturbed: tuple[Path, RunResult]) -> None:
    there, wanted = undisturbed
    folder = root / "runs" / "tiny"
    assert (found.steps, found.stopped) == (STEPS, None)
    assert (found.metrics, found.best) == (wanted.metrics, wanted.best)
    tensors = weights(found)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(wanted).items())
    assert metrics_on_record(root) == metrics_in_journal(root) == metrics_on_record(there)
    assert [step for step, _ in metrics_on_record(root)] == [EVERY, STEPS]
    assert read_spec(folder / "best").provenance["metrics"] == wanted.best
    best, other = (load_bundle(place / "runs" / "tiny" / "best")[0].state_dict() for place in (root, there))
    assert all(torch.equal(best[name], tensor) for name, tensor in other.items())
    report = check_ledger(folder, dataset=few_digits())
    assert report.ok, report.lines()
    assert (report.steps, report.void_samples) == (STEPS, 0), "a step was trained twice"
    assert (folder / "plots" / "curves.png").is_file()


Act = Callable[..., Any]


def dies(act: Act) -> Act:
    """In place of `act`."""

    def dying(*_values: Any, **_named: Any) -> Any:
        raise Killed

    return dying


def dies_after(act: Act) -> Act:
    def dying(*values: Any, **named: Any) -> Any:
        act(*values, **named)
        raise Killed

    return dying


def dies_half_way(act: Act) -> Act:
    """The best model's new weights are there, their description isn't."""

    def dying(folder: Path, *values: Any) -> Any:
        act(folder, *values)
        (folder / "bundle.json").unlink()
        raise Killed

    return dying


DEATHS: list[tuple[str, Any, str, Callable[[Act], Act]]] = [
    ("in the evaluation", evaluations, "judge", dies_after),
    ("before it is on record", Evaluations, "_append", dies),
    ("once it is on record", Evaluations, "_append", dies_after),
    ("while its weights are written", outputs, "write_bundle", dies_half_way),
    ("before it is told", Telemetry, "on_evaluation", dies),
    ("once it is told", Telemetry, "on_evaluation", dies_after),
]
AT_THE_END = ("before the run's end is told", Telemetry, "on_end", dies)


def test_whatever_dies_around_an_evaluation_nothing_is_lost_and_nothing_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Path, RunResult]
) -> None:
    """Each start dies a little later than the one before, at the second step and at the last."""
    values = short(tmp_path)
    for step in (EVERY, STEPS):
        for when, owner, name, dying in [*DEATHS, *([AT_THE_END] if step == STEPS else [])]:
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(owner, name, dying(getattr(owner, name)))
                trained(values)
            newest = list_checkpoints(tmp_path / "runs" / "tiny")[-1]
            assert newest.step == step, f"not committed {when}"
    assert_as_undisturbed(tmp_path, trained(values), undisturbed)
    assert trained(values).already_complete


class Beats:
    """What a watcher hears: phases with the step."""

    def __init__(self) -> None:
        self.heard: list[tuple[Phase, int]] = []

    def beat(self, phase: Phase, step: int, micro_batch: int, note: str) -> None:
        self.heard.append((phase, step))

    def step_done(self, step: int, seconds: float) -> None: ...
    def bear(self, seconds: float) -> None: ...


def test_an_evaluation_that_is_owed_is_told_with_the_step_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor takes the step that an attempt goes on after from its first beat."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(evaluations, "judge", dies(evaluations.judge))
        trained(short(tmp_path))
    beats = Beats()
    run(short(tmp_path), clock=PhaseClock(beats))
    first = next(one for one in beats.heard if one[0] is not Phase.START)
    assert first == (Phase.EVALUATE, EVERY)


class Stop(Callback):
    """The n-th batch that `rank` evaluates brings it a SIGTERM."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch, self.batches = rank, batch, 0

    @contextmanager
    def planted(self) -> Iterator[None]:
        after_batch = Evaluations._after_batch

        def after(found: Evaluations) -> None:
            self.batches += 1
            if (found.engine.world.rank, self.batches) == (self.rank, self.batch):
                os.kill(os.getpid(), signal.SIGTERM)
            after_batch(found)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Evaluations, "_after_batch", after)
            yield


def stopped(
    values: TrainJob, rank: int = -1, batch: int = 0
) -> tuple[str | None, int, int, dict[str, float]]:
    """Why the run stopped, after how many steps and batches of evaluations, and its best metrics."""
    request, stop = StopRequest(), Stop(rank, batch)
    with stop.planted(), request.listening():
        result = run(values, stop=request)
    return result.stopped, result.steps, stop.batches, result.best


def stopped_twice(root: str) -> list[Any]:
    """In the evaluation after the second step, and in the second half of the last; then to the end; and the whole."""
    values, whole = short(Path(root) / "parts"), short(Path(root) / "whole")
    return [stopped(values, 1, 2), stopped(values, 0, BATCHES + 9), stopped(values), stopped(whole)]


BATCHES = 12
"""Of an evaluation, on each of two ranks: six with the average of the weights, then six with the plain ones."""


@pytest.mark.slow
def test_a_rank_told_to_stop_in_an_evaluation_stops_all_within_a_batch(tmp_path: Path) -> None:
    for first, second, last, whole in run_ranks(stopped_twice, 2, str(tmp_path)):
        assert first == ("SIGTERM", EVERY, 2, {})
        assert second[:3] == ("SIGTERM", STEPS, BATCHES + 9)
        assert last[:3] == (None, STEPS, BATCHES)
        assert whole[:3] == (None, STEPS, 2 * BATCHES)
        assert last[3] == whole[3]
    parts, whole_run = tmp_path / "parts", tmp_path / "whole"
    assert metrics_on_record(parts) == metrics_in_journal(parts) == metrics_on_record(whole_run)
    report = check_ledger(parts / "runs" / "tiny", dataset=few_digits())
    assert report.ok and (report.steps, report.void_samples) == (STEPS, 0)


def test_best_weights_that_the_storage_refuses_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Path, RunResult]
) -> None:
    """A full disk costs no run."""
    writes = []

    def refuses_first(folder: Path, *values: Any) -> None:
        writes.append(folder)
        if len(writes) == 1:
            raise TrackingError(f"{folder}: the model bundle can't be written: No space left on device")
        write_bundle(folder, *values)

    write_bundle = outputs.write_bundle
    monkeypatch.setattr(outputs, "write_bundle", refuses_first)
    assert_as_undisturbed(tmp_path, trained(short(tmp_path)), undisturbed)
    assert len(writes) > 1


def test_who_was_replaced_in_an_evaluation_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = short(tmp_path)
    judge = evaluations.judge

    def replaced(*given: Any, last: bool) -> dict[str, float]:
        claim_attempt(tmp_path / "runs" / "tiny" / "ledger")
        return judge(*given, last=last)

    monkeypatch.setattr(evaluations, "judge", replaced)
    with pytest.raises(SupersededError):
        trained(values)
    assert metrics_on_record(tmp_path) == []
    assert not (tmp_path / "runs" / "tiny" / "best").exists()


@pytest.mark.slow
def test_the_best_is_what_has_weights(tmp_path: Path) -> None:
    """That of an evaluation since rolled back is the best until a better one comes; a lost one counts no more."""
    values = short(tmp_path)
    trained(values)
    folder = tmp_path / "runs" / "tiny"
    spec = json.loads((folder / "best" / "bundle.json").read_text())
    spec["provenance"]["metrics"]["eval/top1"] = 99.0
    (folder / "best" / "bundle.json").write_text(json.dumps(spec))
    assert trained(values).best["eval/top1"] == 99.0
    (folder / "best" / "bundle.json").write_text("{")
    longer = values.model_copy(
        update={"training": values.training.model_copy(update={"max_steps": STEPS + EVERY})}
    )
    result = trained(longer)
    assert result.best == result.metrics == read_spec(folder / "best").provenance["metrics"]


def test_a_run_of_a_release_that_evaluated_first_goes_on(
    tmp_path: Path, undisturbed: tuple[Path, RunResult]
) -> None:
    """Its checkpoints know their own evaluation, and there is no record of others."""
    values = short(tmp_path)
    first = values.model_copy(update={"training": values.training.model_copy(update={"max_steps": EVERY})})
    trained(first)
    folder = tmp_path / "runs" / "tiny"
    known = metrics_on_record(tmp_path)[0][1]
    restate(folder / "checkpoints" / step_name(EVERY), metrics=known, best=known)
    (folder / "evaluations.jsonl").unlink()
    again = trained(first)
    assert (again.already_complete, again.metrics, again.best) == (True, known, known)
    result = trained(values)
    assert (result.metrics, result.best) == (undisturbed[1].metrics, undisturbed[1].best)
    assert [step for step, _ in metrics_on_record(tmp_path)] == [STEPS]
    assert [step for step, _ in metrics_in_journal(tmp_path)] == [EVERY, STEPS]


def restate(checkpoint: Path, **facts: Any) -> None:
    """Give a checkpoint the state of an older release: without `evaluated`, with these facts."""
    state = {k: v for k, v in json.loads((checkpoint / "state.json").read_text()).items() if k != "evaluated"}
    text = json.dumps(state | facts).encode()
    (checkpoint / "state.json").write_bytes(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] |= {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    del manifest["digest"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 2}))


def test_the_list_of_checkpoints_shows_each_ones_own_evaluation(
    undisturbed: tuple[Path, RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = undisturbed
    assert main(["checkpoints", "list", str(root / "runs" / "tiny")]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [f"top1 {metrics['eval/top1']:.2f} %" for _, metrics in metrics_on_record(root)]
    assert [text in line for text, line in zip(shown, lines, strict=True)] == [True, True]


def process(root: Path, values: TrainJob, evaluation: str) -> subprocess.Popen[str]:
    """`convmlp run JOB --no-ray`, with a body for what happens after each evaluated batch."""
    (root / "job.yaml").write_text(dump_yaml(values))
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from convmlp_platform.training.evaluation.evaluations import Evaluations\n"
        "after_batch = Evaluations._after_batch\n"
        f"def after(found):\n    Path({str(root / 'evaluating')!r}).touch()\n    {evaluation}\n    after_batch(found)\n"
        "Evaluations._after_batch = after\n"
        "from convmlp_platform.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", str(root / "job.yaml"), "--no-ray"]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_processes_that_are_stopped_and_killed_in_their_evaluation(tmp_path: Path) -> None:
    """The first doesn't get to answer its SIGTERM; the second does; the third ends the run."""
    values = short(tmp_path)
    outputs: list[str] = []
    codes: list[int] = []
    for evaluation, signals in (
        ("time.sleep(600)", (signal.SIGTERM, signal.SIGKILL)),
        ("time.sleep(0.5)", (signal.SIGTERM,)),
        ("pass", ()),
    ):
        (tmp_path / "evaluating").unlink(missing_ok=True)
        with process(tmp_path, values, evaluation) as started:
            while signals and not (tmp_path / "evaluating").exists():
                assert started.poll() is None, started.stdout and started.stdout.read()
                time.sleep(0.02)
            for number in signals:
                started.send_signal(number)
            outputs.append(started.communicate(timeout=240)[0])
            codes.append(started.returncode)
    assert codes == [-signal.SIGKILL, 128 + signal.SIGTERM, 0], outputs
    assert f"told to stop (SIGTERM): step {EVERY} is saved" in outputs[1]
    assert all(f"training goes on after step {EVERY}, until step {STEPS}" in output for output in outputs[1:])
    assert not any("evaluation after" in output for output in outputs[:2])
    assert metrics_on_record(tmp_path) == metrics_in_journal(tmp_path)
    assert [step for step, _ in metrics_on_record(tmp_path)] == [EVERY, STEPS]
    report = check_ledger(tmp_path / "runs" / "tiny", dataset=few_digits())
    assert report.ok and (report.steps, report.void_samples) == (STEPS, 0)
