"""Whatever happens to a run: the classes' seconds add up to the drivers' time times the workers asked for."""

from __future__ import annotations

from math import fsum
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp_platform.goodput.account import Goodput, account
from convmlp_platform.goodput.goodput_log import GoodputFile, LogHeader, LogLine
from convmlp_platform.health.heartbeat.phases import Phase

CAUSES = ("preemption", "hardware", "hang", "data", "code", "grow", "finished", "stopped")
Events = list[dict[str, Any]]


class History:
    """A made-up run: what the driver and the ranks of it wrote, and how much time there was."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.now = draw(st.floats(1.7e9, 1.9e9))
        self.events: Events = []
        self.files: list[GoodputFile] = []
        self.expected = 0.0
        self.attempt, self.start, self.step = 0, 0, 0

    def wait(self, most: float = 100.0) -> None:
        self.now += self.draw(st.floats(0.0, most))

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"time": self.now, "kind": kind} | fields)

    def driver(self) -> None:
        """A driver's life: some starts on any number of its workers."""
        workers, began = self.draw(st.integers(1, 4)), self.now
        self.event("driver_started", num_workers=workers)
        for _ in range(self.draw(st.integers(0, 3))):
            self.wait()
            self.one_start(self.draw(st.integers(1, workers)))
        self.wait()
        self.event("driver_ended", exit_code=0)
        self.expected += (self.now - began) * workers

    def one_start(self, world: int) -> None:
        """Processes that make steps, roll back, and end in any way."""
        self.start += 1
        self.event("attempt_started", start=self.start, world_size=world)
        self.wait(10.0)
        began = self.now
        skews = [self.draw(st.sampled_from([0.0, 0.0, -7200.0, 0.3, 7200.0])) for _ in range(world)]
        seconds = dict.fromkeys(Phase.__members__, 0.0)
        for _ in range(self.draw(st.integers(0, 2))):
            self.one_attempt(world, began, skews, seconds)
            if self.draw(st.booleans()):
                self.event("attempt_running", start=self.start, step=self.step)
        self.wait(30.0)
        stalled = self.draw(st.sampled_from([None, 0.0, 5.0, 1e6]))
        self.event(
            "attempt_ended", start=self.start, cause=self.draw(st.sampled_from(CAUSES)), stalled_s=stalled
        )

    def one_attempt(self, world: int, began: float, skews: list[float], seconds: dict[str, float]) -> None:
        parent, self.attempt = self.attempt, self.attempt + 1
        self.step = self.draw(st.integers(0, self.step))
        first, lines = self.step, []
        for _ in range(self.draw(st.integers(0, 4))):
            name = self.draw(st.sampled_from(list(seconds)))
            before = self.now
            self.wait(50.0)
            seconds[name] += self.now - before
            self.step += self.draw(st.integers(0, 20))
            lines.append(LogLine(self.now, self.step, name, dict(seconds)))
        for rank in range(world):
            if self.draw(st.sampled_from([True, True, True, False])):  # else the file is lost
                kept = lines[: self.draw(st.integers(0, len(lines)))]
                header = LogHeader(
                    "id", self.attempt, parent, first, rank, world, f"host{rank}", "cpu", 10 + self.start,
                    began + skews[rank], self.start,
                )  # fmt: skip
                self.files.append(GoodputFile(header, kept))


@st.composite
def histories(draw: st.DrawFn) -> History:
    history = History(draw)
    for _ in range(draw(st.integers(1, 3))):
        history.driver()
        history.wait(1000.0)
    return history


def check(found: Goodput) -> None:
    assert all(seconds >= 0.0 for seconds in found.seconds.values())
    for session in found.history.sessions:
        assert session.end is not None and session.end >= session.begin
    workers = fsum((s.end - s.begin) * s.workers for s in found.history.sessions if s.end is not None)
    assert abs(found.total_s - workers) < 1e-6
    for piece in found.slices:
        assert piece.end >= piece.begin and all(s >= 0.0 for s in piece.seconds.values())
        assert abs(fsum(piece.seconds.values()) - (piece.end - piece.begin)) < 1e-6
    assert found.unrecorded_s <= found.total_s + 1e-6
    assert 0.0 <= found.goodput <= 1.0 + 1e-9
    assert all(one.seconds >= 0.0 for one in found.interruptions)
    assert fsum(one.seconds for one in found.interruptions) <= found.total_s + 1e-6


def covered_once(found: Goodput) -> None:
    """Each worker's slices follow one another without a gap or an overlap, within each session."""
    for session in found.history.sessions:
        for worker in range(session.workers):
            pieces = [
                p
                for p in found.slices
                if worker in p.workers and p.begin >= session.begin and p.end <= (session.end or 0.0)
            ]
            pieces.sort(key=lambda piece: (piece.begin, piece.end))
            now = session.begin
            for piece in pieces:
                assert abs(piece.begin - now) < 1e-6
                now = piece.end
            assert abs(now - (session.end or 0.0)) < 1e-6


@settings(max_examples=100, deadline=None)
@given(histories())
def test_all_time_is_accounted_once(history: History) -> None:
    found = account(history.files, history.events)
    check(found)
    covered_once(found)
    left = fsum(session.left * session.workers for session in found.history.sessions)
    assert abs(found.total_s + left - history.expected) < 1e-6 * max(1.0, history.expected)
    assert found.ending_s == fsum(session.left for session in found.history.sessions) >= 0.0


@settings(max_examples=100, deadline=None)
@given(histories(), st.data())
def test_no_damage_breaks_the_sum(history: History, data: st.DataObject) -> None:
    """Events that are lost, a driver that was killed, all events or all logs gone, a driver's clock set back."""
    kept = [event for event in history.events if data.draw(st.sampled_from([True, True, True, False]))]
    back = data.draw(st.sampled_from([0.0, 0.0, 5000.0]))
    half = len(kept) // 2
    kept[half:] = [event | {"time": event["time"] - back} for event in kept[half:]]
    files = [file for file in history.files if data.draw(st.sampled_from([True, True, True, False]))]
    for some in (kept, []):
        check(account(files, some))
    check(account([], kept))
