"""`profile: {steps: [3, 7]}` in a job: a trace, memory and a page; whatever of it goes wrong costs the run nothing."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from prepared import few_digits
from pydantic import ValidationError
from ranks import run_ranks
from test_run import job

from convmlp_platform.goodput.account import account_of
from convmlp_platform.goodput.slices import TimeClass
from convmlp_platform.health.heartbeat.phases import PhaseClock
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.preflight.preflight import preflight
from convmlp_platform.training.profiling import profiler
from convmlp_platform.training.profiling.trace_reading import read_trace
from convmlp_platform.training.run import run
from convmlp_platform.training.step_plan import TrainState


def profile_of(root: Path, steps: str, rank: int = 0) -> Path:
    return root / "runs" / "tiny" / "profile" / f"steps-{steps}" / f"rank-{rank:05d}"


def test_a_run_leaves_a_trace_a_timeline_of_memory_and_a_page(tmp_path: Path) -> None:
    clock = PhaseClock()
    run(job(tmp_path, profile={"steps": [3, 7]}, training__max_steps=7), clock=clock)
    assert clock.beats is None
    folder = profile_of(tmp_path, "3-7")
    assert sorted(file.name for file in folder.iterdir()) == ["memory.json", "summary.md", "trace.json.gz"]
    with gzip.open(folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    steps = {event["name"] for event in events if str(event["name"]).startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{step}" for step in (3, 4, 5, 6)}
    facts = read_trace(events)
    assert {"data wait", "forward", "backward", "optimizer", "agreement of ranks"} <= facts.parts.keys()
    assert sum(facts.parts.values()) == pytest.approx(facts.seconds, rel=0.01)
    assert any(operator.name == "aten::convolution_backward" for operator in facts.operators)
    page = (folder / "summary.md").read_text()
    assert page.startswith("# Profile of tiny, steps 3 to 6, rank 0 of 1\n")
    shares = re.findall(
        r"^\| [a-z ]+ \| [\d.,]+ ms \| ([\d.]+) % \|$", page.partition("## The dearest")[0], re.M
    )
    assert 98 < sum(map(float, shares[:-1])) < 102 and shares[-1] == "100"
    memory = json.loads((folder / "memory.json").read_text())
    assert memory["points"] and max(memory["peak_by_part"].values()) > 0
    journal = journal_path(tmp_path / "runs" / "tiny").read_text()
    assert '"folder":"profile/steps-3-7/rank-00000"' in journal.replace(" ", "")
    # Writing it is no productive time.
    account = account_of(tmp_path / "runs" / "tiny")
    assert account.history and TimeClass.CHECKPOINT in {
        kind for one in account.slices for kind in one.seconds
    }


@pytest.mark.parametrize(
    "broken",
    ["start", *(pytest.param(name, marks=pytest.mark.slow) for name in ("stop", "export_chrome_trace"))],
)
def test_a_profiler_that_fails_costs_a_line(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(profiler.profile, broken, fails)
    result = run(job(tmp_path, profile={"steps": [3, 7]}, training__max_steps=8))
    assert result.steps == 8
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("profile")]
    assert told == ["profile: RuntimeError: no room; training goes on without it"]
    assert not (profile_of(tmp_path, "3-7") / "summary.md").exists()


class Dies(Callback):
    """An error after step 5, where a checkpoint of 4 is there."""

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        if state.step == 5:
            raise RuntimeError("killed")


@pytest.mark.slow
def test_a_run_that_died_within_the_steps_records_those_that_are_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = job(tmp_path, profile={"steps": [3, 7]}, training__log_every_steps=1, checkpoint__every_steps=4)
    with pytest.raises(RuntimeError, match="killed"):
        run(given, [Dies()])
    run(given.model_copy(update={"training": given.training.model_copy(update={"max_steps": 8})}))
    page = profile_of(tmp_path, "3-7") / "summary.md"
    assert page.read_text().startswith("# Profile of tiny, steps 4 to 6, rank 0")
    # Further back than where the run is.
    again = job(tmp_path, profile={"steps": [0, 3]}, checkpoint__every_steps=4)
    report = preflight(again)
    assert not report.problems
    assert any("8 steps behind it" in line for line in report.summary)
    capsys.readouterr()
    run(again)
    assert (
        "profile: steps [0, 3] were done before this start, which goes on after step 8;"
        in capsys.readouterr().out
    )


def two_ranks(root: str) -> Any:
    given = job(Path(root), profile={"steps": [2, 4], "every_rank": True}, training__max_steps=5)
    return run(given).steps


@pytest.mark.slow
def test_each_rank_records_what_it_sends(tmp_path: Path) -> None:
    few_digits()
    assert run_ranks(two_ranks, 2, str(tmp_path)) == [5, 5]
    for rank in (0, 1):
        page = (profile_of(tmp_path, "2-4", rank) / "summary.md").read_text()
        assert f"rank {rank} of 2" in page and "Communication took" in page
    journal = journal_path(tmp_path / "runs" / "tiny").read_text()
    assert "steps-2-4/rank-00000" in journal and "steps-2-4/rank-00001" in journal


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([7, 7], "must rise"),
        ([9, 3], "must rise"),
        ([0, 500], "500 steps, whose trace no viewer opens: 100 at most"),
    ],
)
def test_steps_that_make_no_profile_are_refused(steps: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        job(tmp_path, profile={"steps": steps})


def test_steps_after_the_run_s_end_are_a_problem(tmp_path: Path) -> None:
    problem = (
        r"profile.steps \(=\[10, 20\]\): the run has 12 steps; lower it, or raise training.epochs \(=0.42\)"
    )
    assert any(
        re.fullmatch(problem, found)
        for found in preflight(job(tmp_path, profile={"steps": [10, 20]})).problems
    )
    cut = preflight(job(tmp_path, profile={"steps": [3, 7]}, training__max_steps=6)).problems
    assert cut == ["profile.steps (=[3, 7]): the run has 6 steps; lower it, or raise training.max_steps"]
