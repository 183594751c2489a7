"""Which rank is called stuck, and when, in simulated runs of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_run import FOREVER, Fault, Setting, Simulation

from convmlp_platform.config.sections.resilience import HangSection
from convmlp_platform.health.hangs.hang_watch import Hang, HangWatch, RankView
from convmlp_platform.health.heartbeat.phases import Phase

KINDS = [{}, {"runs_ahead": True}, {"sharded": True}]
STUCK_IN = [Phase.DATA, Phase.COMPUTE, Phase.UPDATE, Phase.EVALUATE]


@st.composite
def faulty_runs(draw: st.DrawFn) -> tuple[Setting, Fault]:
    world_size = draw(st.integers(1, 12))
    step_s = draw(st.sampled_from([0.02, 0.3, 2.0]))
    kind = draw(st.sampled_from(KINDS))
    setting = Setting(world_size, step_s, seed=draw(st.integers(0, 10**6)), evaluate_every=10, **kind)
    phase = draw(st.sampled_from(STUCK_IN))
    # An evaluation comes after a step of its own, and the first one's pace isn't known yet.
    step = 20 if phase is Phase.EVALUATE else draw(st.integers(5, 40))
    micro_batch = 0 if phase in (Phase.DATA, Phase.UPDATE) else draw(st.integers(0, 2))
    rank = draw(st.integers(0, world_size - 1))
    return setting, Fault(rank, step, phase, micro_batch, draw(st.sampled_from(["S", "S", "R", "T", "D"])))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(faulty_runs())
def test_the_stuck_rank_is_found_and_named_in_time(run: tuple[Setting, Fault]) -> None:
    setting, fault = run
    simulation = Simulation(setting, fault)
    hang = simulation.until_hang(400.0)
    assert hang is not None
    assert (hang.rank, hang.is_sure) == (fault.rank, True), hang.message()
    assert (hang.phase, hang.step) == (fault.phase, fault.step)
    stuck = simulation.ranks[fault.rank]
    usual = max(stuck.state.median_s, stuck.state.longest_gap_s if fault.phase is Phase.EVALUATE else 0.0)
    # The stacks take up to about another second.
    assert simulation.now - (stuck.stuck_since or 0.0) < 3 * usual + 9.0


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(1, 8),
    st.sampled_from([0.05, 0.5, 3.0]),
    st.sampled_from(KINDS),
    st.integers(0, 10**6),
    st.sampled_from([1.0, 60.0]),
)
def test_a_healthy_run_is_never_called_stuck(
    world_size: int, step_s: float, kind: dict[str, bool], seed: int, save_s: float
) -> None:
    setting = Setting(world_size, step_s, seed=seed, jitter=0.5, stalls=0.01, save_s=save_s, **kind)
    simulation = Simulation(setting)
    hang = simulation.until_hang(600.0)
    assert hang is None, hang.message()
    assert all(rank.state.step > 5 for rank in simulation.ranks)


def test_who_waits_for_a_slow_save_is_not_stuck_and_has_time_to_go_on_after_it() -> None:
    """Just after a slow save the views of the released ranks still say that they have waited for a minute."""
    for seed in range(8):
        setting = Setting(4, 0.5, seed=seed, save_every=3, save_s=40.0)
        assert Simulation(setting).until_hang(400.0) is None
    stuck = Simulation(replace(setting, save_s=FOREVER)).until_hang(3000.0)
    assert stuck is not None and (stuck.rank, stuck.phase) == (0, Phase.CHECKPOINT)


def test_a_rank_stuck_in_its_first_steps_has_the_time_of_a_start() -> None:
    section = HangSection(start_s=120.0)
    hang = Simulation(Setting(2), Fault(1, 0, Phase.COMPUTE), section).until_hang(400.0)
    assert hang is not None and hang.rank == 1 and hang.stalled_s > 120.0
    hang = Simulation(Setting(2), Fault(1, 1, Phase.DATA)).until_hang(400.0)
    assert hang is not None and hang.rank == 1 and 60.0 < hang.stalled_s < 65.0


def looked(change: Callable[[RankView], RankView | None], looks: int) -> Hang | None:
    """What a watch says that sees a healthy run for 60 s, and then its ranks as they have changed."""
    simulation = Simulation(Setting(2))
    assert simulation.until_hang(60.0) is None
    last, found = [rank.view(simulation.now) for rank in simulation.ranks], None
    for _ in range(looks):
        simulation.now += 0.5
        last = [changed for view in last if (changed := change(view)) is not None]
        simulation.watch.update(last)
        found = found or simulation.watch.check()
    return found


def later(view: RankView, seconds: float, received_s: float = 0.5) -> RankView:
    assert view.heartbeat is not None
    beat = replace(view.heartbeat, stalled_s=view.heartbeat.stalled_s + seconds)
    return replace(view, heartbeat=beat, received_at=view.received_at + received_s)


def test_an_agent_that_is_silent_is_no_hang() -> None:
    assert looked(lambda view: view, 200) is None  # the last view, again and again
    assert looked(lambda view: None, 200) is None


def test_a_machine_that_slept_is_no_hang() -> None:
    """Rank and watcher stood still together: one look after 100 s says nothing of the 100 s."""
    assert looked(lambda view: later(view, 100.0, 100.0), 3) is None
    assert looked(lambda view: later(view, 0.5), 60) is not None


def test_a_rank_that_died_is_not_called_stuck() -> None:
    assert looked(lambda view: replace(later(view, 0.5), state="Z"), 200) is None


def test_a_process_without_a_heartbeat_has_the_time_of_a_start() -> None:
    watch = HangWatch(HangSection(start_s=30.0), 2)
    for tick in range(200):
        now = tick / 2
        watch.update([RankView(0, "a", None, "S", now), RankView(1, "b", None, "S", now)])
        if (hang := watch.check()) is not None:
            break
    assert hang is not None and 30.0 < now < 32.0
    assert "ranks 0 and 1 stand still" in hang.message() and "not even starting" in hang.message()


def test_a_remote_storage_may_take_its_patience() -> None:
    fault = Fault(1, 20, Phase.DATA)
    simulation = Simulation(Setting(2), fault)
    for rank in simulation.ranks:
        rank.state.patience_s = 300.0
    hang = simulation.until_hang(1000.0)
    assert hang is not None and hang.rank == 1 and hang.stalled_s > 300.0


def test_turned_off_it_finds_nothing() -> None:
    off = HangSection(enabled=False)
    assert Simulation(Setting(2), Fault(1, 20, Phase.DATA), off).until_hang(200.0) is None


@pytest.mark.parametrize("ahead", [False, True])
def test_doubt_is_said(ahead: bool) -> None:
    """All ranks are equally far and all wait in a collective: nothing names one."""
    simulation = Simulation(Setting(3, runs_ahead=ahead), Fault(1, 20, Phase.UPDATE))
    while (hang := simulation.look()) is None:
        pass
    for rank in simulation.ranks:
        rank.waits = True
    hang = hang.with_stacks({rank.number: rank.stacks() for rank in simulation.ranks})
    assert not hang.is_sure and len(hang.suspects) == 3
    assert "ranks 0, 1 and 2 stand still, and nothing tells which" in hang.message()
