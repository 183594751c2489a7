"""What an account says of runs whose truth is known."""

from __future__ import annotations

import pytest
from goodput_story import EVENTS, T0, TRUTH, first_start, header, line, second_start

from convmlp_platform.goodput.account import Goodput, Price, account
from convmlp_platform.goodput.goodput_log import GoodputFile
from convmlp_platform.goodput.slices import TimeClass


def story(skew: float = 0.0) -> Goodput:
    return account([*first_start(skew), *second_start()], EVENTS, Price(36.0, "EUR"))


def seconds(found: Goodput) -> dict[str, float]:
    return {str(kind): spent for kind, spent in found.seconds.items() if spent}


def test_a_node_dies_and_the_other_worker_goes_on() -> None:
    found = story()
    assert seconds(found) == pytest.approx(TRUTH)
    assert (found.wall_s, found.total_s, found.down_s, found.unrecorded_s) == pytest.approx((66, 132, 0, 0))
    assert found.ending_s == pytest.approx(2)
    assert found.by_worker[1][TimeClass.IDLE] == pytest.approx(20.5)
    assert found.by_start[0][TimeClass.LOST_WORK] == pytest.approx(29)


def test_what_the_failure_took_is_told_with_its_culprit() -> None:
    (one,) = story().interruptions
    assert (one.cause, one.rank, one.host, one.message) == (
        "hardware",
        1,
        "host1",
        "the node of rank 1 is gone",
    )
    assert (one.attempt, one.time, one.downtime_s) == (1, 45.5, 7.5)
    assert (one.detection_s, one.restart_s, one.lost_s) == pytest.approx((0, 2.5 + 4 + 1, 29))


def test_money_leaves_out_workers_that_were_not_there() -> None:
    found = story()
    assert found.cost() == pytest.approx((132 - TRUTH["idle"]) / 100)
    assert found.cost(TimeClass.LOST_WORK) == pytest.approx(0.29)
    assert found.cost(TimeClass.IDLE) == 0.0
    assert found.cost_of_last_failure == pytest.approx((7.5 + 29) / 100)
    assert found.cost_per_point == pytest.approx((132 - TRUTH["idle"]) / 100 / 80.0)
    metrics = found.metrics()
    assert metrics["cost/total"] == found.cost()
    assert sum(share for name, share in metrics.items() if name.startswith("goodput/")) == pytest.approx(1.0)


@pytest.mark.parametrize("skew", [-3600.0, -1.0, 1.0, 3600.0])
def test_a_clock_that_is_wrong_moves_seconds_only_between_waiting_and_dying(skew: float) -> None:
    found = seconds(story(skew))
    moved = found["restart"] - TRUTH["restart"]
    assert abs(moved) <= 2 * 5.0
    assert found["lost_work"] == pytest.approx(TRUTH["lost_work"] - moved)
    same = TRUTH.keys() - {"restart", "lost_work"}
    assert {kind: found[kind] for kind in same} == pytest.approx({kind: TRUTH[kind] for kind in same})


def test_an_evaluation_that_a_death_cut_off_is_lost_work_though_its_step_was_saved() -> None:
    cut_off = line(41, 20, "EVALUATE", START=5, COMPILE=2, DATA=2, COMPUTE=18, CHECKPOINT=1, EVALUATE=10)
    first = [GoodputFile(file.header, [*file.lines[:3], cut_off]) for file in first_start()]
    assert seconds(account([*first, *second_start()], EVENTS)) == pytest.approx(TRUTH)


def test_a_rank_without_a_log_did_what_the_others_did() -> None:
    found = account([first_start()[0], *second_start()], EVENTS)
    assert seconds(found) == pytest.approx(TRUTH)
    assert found.unrecorded_s == pytest.approx(45.5 - 3)


def test_without_any_log_of_a_start_what_followed_its_first_step_counts_as_lost() -> None:
    found = account(second_start(), EVENTS)
    assert found.seconds[TimeClass.LOST_WORK] == pytest.approx(2 * 35.5)
    assert found.unrecorded_s == pytest.approx(2 * 35.5)


def test_standing_still_before_it_was_found_is_no_lost_work() -> None:
    hung = [
        event | {"stalled_s": 3.0, "cause": "hang"} if event.get("cause") == "hardware" else event
        for event in EVENTS
    ]
    found = account([*first_start(), *second_start()], hung)
    assert found.seconds[TimeClass.LOST_WORK] == pytest.approx(2 * 11.5)
    assert found.interruptions[0].detection_s == pytest.approx(2 * 3)


def test_steps_between_two_lines_are_divided_at_the_checkpoint() -> None:
    first, _ = first_start()
    without = GoodputFile(first.header, [first.lines[0], first.lines[3]])  # steps 0 to 30 in one
    found = account([without, *second_start()], EVENTS)
    assert found.seconds[TimeClass.USEFUL_STEP] == pytest.approx(2 * 27 * 20 / 30 + 6)


def rolled_back() -> list[GoodputFile]:
    """Under torchrun: step 15 goes wrong, the process goes back to step 10 and on to 20."""
    before = [
        line(2, 0, "START", START=2),
        line(12, 10, "DATA", START=2, COMPUTE=10),
        line(17, 15, "UPDATE", START=2, COMPUTE=15),
    ]
    after = [
        line(20, 10, "START", START=4, COMPUTE=16),
        line(30, 20, "FINISH", START=4, COMPUTE=26),
    ]
    same = {"pid": 7, "start": None}
    return [
        GoodputFile(header(1, 0, 1, 0, **same), before),
        GoodputFile(header(2, 0, 1, 0, parent=1, start_step=10, **same), after),
    ]


def test_a_rollback_within_a_process_counts_no_second_twice() -> None:
    found = account(rolled_back(), [])
    assert seconds(found) == pytest.approx({"restart": 4, "useful_step": 20, "lost_work": 6})
    (one,) = found.interruptions
    assert (one.cause, one.attempt) == ("rollback", 1)
    assert (one.restart_s, one.lost_s) == pytest.approx((2, 6))


def test_time_between_drivers_is_no_part_of_the_account() -> None:
    started = {"kind": "driver_started", "num_workers": 1}
    events = [
        started | {"time": T0},
        {"time": T0 + 1, "kind": "attempt_started", "start": 1, "world_size": 1},
        started | {"time": T0 + 100},
        {"time": T0 + 101, "kind": "attempt_started", "start": 2, "world_size": 1},
    ]
    first = GoodputFile(header(1, 0, 1, 2), [line(12, 10, "DATA", START=1, COMPUTE=9)])
    second = GoodputFile(
        header(2, 0, 1, 102, parent=1, start_step=4), [line(112, 10, "DATA", START=1, COMPUTE=9)]
    )
    found = account([first, second], events)
    assert (found.wall_s, found.down_s) == pytest.approx((12 + 12, 88))
    assert found.interruptions[0].cause == "driver"
    assert seconds(found) == pytest.approx(
        {"restart": 2 * 3, "useful_step": 9 * 0.4 + 9, "lost_work": 9 * 0.6}
    )


def test_a_start_whose_event_was_lost_is_found_by_its_log() -> None:
    events = [event for event in EVENTS if event.get("start") != 1]
    found = account([*first_start(), *second_start()], events)
    assert found.total_s == pytest.approx(132)
    assert [start.number for start in found.history.starts] == [1, 2]
    assert found.seconds[TimeClass.USEFUL_STEP] == pytest.approx(TRUTH["useful_step"])


def test_nothing_is_an_account_of_nothing() -> None:
    found = account([], [])
    assert (found.total_s, found.goodput, found.interruptions) == (0.0, 0.0, [])


def test_the_account_that_rank_0_closes_is_the_one_that_is_found_later() -> None:
    """At its end rank 0 sees neither its start's end nor what the other rank writes last: no part of it."""
    workers = [*EVENTS[:1], {"time": T0 + 1, "kind": "attempt_started", "start": 1, "world_size": 2}]
    lines = [
        line(8, 0, "START", START=5),
        line(30, 20, "CHECKPOINT", START=5, COMPUTE=22),
        line(33, 20, "FINISH", START=5, COMPUTE=22, FINISH=3),
    ]
    late = line(33.2, 20, "FINISH", START=5, COMPUTE=22, FINISH=3.2)
    first, second = (header(1, rank, 2, 3) for rank in (0, 1))
    then = account([GoodputFile(first, lines), GoodputFile(second, lines[:2])], workers)
    ends = [
        {"time": T0 + 60, "kind": "attempt_ended", "start": 1, "cause": "finished"},
        {"time": T0 + 65, "kind": "driver_ended", "exit_code": 0},
    ]
    later = account([GoodputFile(first, lines), GoodputFile(second, [*lines, late])], [*workers, *ends])
    assert then.goodput == later.goodput == pytest.approx(44 / 66)
    assert (then.total_s, later.total_s) == pytest.approx((66, 66))
    assert (then.ending_s, later.ending_s) == pytest.approx((0, 65 - 33))
    killed = [*workers, ends[0] | {"cause": "hardware"}, ends[1]]
    assert account([GoodputFile(first, lines), GoodputFile(second, lines)], killed).total_s == pytest.approx(
        130
    )
