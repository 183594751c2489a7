"""The real supervisor over small simulated clusters; `make simulate` has large ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from run_simulation import HARD, PUBLISHED
from simulate import NO_LIMIT, Scenario, Violation, a_job, simulate
from simulated_cluster import SimulatedCluster, SimulatedTraining

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.supervisor.attempt import Attempt

SMALL = Scenario("small", 16, 15, 8, 0.5)
EVERYTHING = next(one for one in HARD if one.name == "everything")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_QUIET", "1")


@pytest.fixture(scope="module")
def job() -> TrainJob:
    return a_job(SMALL)


def test_without_faults_a_run_loses_its_start_alone() -> None:
    found = simulate(replace(SMALL, rate=0.0), 1)
    assert found.end == "finished" and found.attempts == 1 and not found.injected
    assert found.goodput > 0.995


def test_whatever_happens_a_run_goes_on_and_again_in_the_same_way() -> None:
    scenario = replace(EVERYTHING, days=0.1)
    runs = [simulate(scenario, seed) for seed in (1, 2, 1)]
    assert [run.end for run in runs] == ["finished"] * 3
    assert runs[0].digest == runs[2].digest != runs[1].digest
    assert sum(sum(run.injected.values()) + run.attempts for run in runs) > 15


def test_the_published_rate_costs_less_than_three_per_cent() -> None:
    found = simulate(replace(PUBLISHED, nodes=64, workers=62, least=48, days=1.0, rate=1.0), 3)
    assert found.end == "finished" and found.goodput > 0.97


def test_a_budget_ends_a_run_and_is_never_exceeded() -> None:
    budgets = NO_LIMIT | {"hardware": 2}
    found = simulate(replace(SMALL, nodes=16, rate=300.0, restarts=budgets, days=1.0), 5)
    assert "launch.restarts.hardware (=2 in 24 h) is used up" in found.end
    assert found.causes["hardware"] == 3


def test_a_second_attempt_beside_a_first_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator can fail: a supervisor that kills nobody is found out."""
    monkeypatch.setattr(Attempt, "kill", lambda self: None)
    with pytest.raises(Violation, match="begins"):
        simulate(replace(SMALL, rate=200.0), 1)


def test_an_agent_that_is_forgotten_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedCluster, "end_agent", lambda self, agent: None)
    with pytest.raises(Violation, match=r"is left on|nobody knows of agent"):
        simulate(replace(SMALL, rate=200.0), 1)


def test_a_run_that_stands_still_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedTraining, "_stepped", lambda self: None)
    with pytest.raises(Violation, match="no training for"):
        simulate(replace(SMALL, rate=0.0), 1)
