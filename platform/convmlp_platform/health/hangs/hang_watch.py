"""The rank that stands still while it should not, found from the heartbeats of all ranks.

Most ranks that stand still wait for another one: in a collective each waits for the last to come. So a rank is judged,
by what its phase may take, only where it can't be waiting: when none is behind it (who is ahead of a rank in a long
save is not stuck), when it waits for its own data, when its process is stopped.

Nothing is concluded from silence: time counts only while news of a rank keeps coming and says that it has made no
progress, so an agent that can't be reached, or a machine that slept, is no hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convmlp_platform.health.hangs.hang_culprit import Hang, RankView, Stuck, find_hang
from convmlp_platform.health.heartbeat.heartbeat import Heartbeat
from convmlp_platform.health.heartbeat.phases import Phase

if TYPE_CHECKING:  # pydantic takes 100 ms to import
    from convmlp_platform.config.sections.resilience import HangSection

__all__ = ["Hang", "HangWatch", "RankView"]

_MEDIANS = 3
# What one look may add to the time that a rank counts as standing still, as a multiple of the time between two looks.
# Where the next comes much later, the watcher or the machine itself stood still, and the rank may have too.
_MOST_LOOKS = 4
# A save waits for its storage: retries take minutes, 0.5 GB at 1 MB/s takes nine. Killing the ranks then would lose
# the steps since the last checkpoint and meet the same storage again, so only this long is surely no waiting.
_SAVING_S = 1800.0
# Before steps, or batches of an evaluation, have shown how long they take: at least this, and 3 times the first step,
# which compiled more than any later one.
_UNKNOWN_S = 60.0


@dataclass
class _Seen:
    """A rank's last view; for how long it has been seen without progress, and without any rank behind it."""

    view: RankView
    stalled_s: float = 0.0
    behind_s: float = 0.0
    news_s: float = 0.0


class HangWatch:
    """Judges the ranks of one attempt; make a new one for each.

    Args:
        section: the job's `launch.hang`.
        look_s: seconds between two views of a rank.
    """

    def __init__(self, section: HangSection, world_size: int, look_s: float = 0.5) -> None:
        self.section, self.world_size = section, world_size
        self._most_per_look_s = _MOST_LOOKS * look_s
        self._seen: dict[int, _Seen] = {}

    def update(self, views: Sequence[RankView]) -> None:
        """Take note of new views, of some ranks or all; one that was seen already (`received_at`) counts as no news."""
        fresh = [view for view in views if self._is_news(view)]
        for view in fresh:
            self._add(view)
        behind = {seen.view.rank for seen in self._behind()}
        for view in fresh:
            seen = self._seen[view.rank]
            seen.behind_s = min(seen.behind_s + seen.news_s, seen.stalled_s) if view.rank in behind else 0.0

    def check(self) -> Hang | None:
        """The hang that the views show, or None. Call `Hang.with_stacks` once the stacks are there."""
        if not self.section.enabled or len(self._seen) < self.world_size:
            return None
        exceeding = [seen for seen in self._living() if self._exceeds(seen)]
        stuck = [seen for seen in exceeding if seen.view.state == "T"]
        stuck = stuck or [seen for seen in exceeding if _phase(seen.view) is Phase.DATA]
        stuck = stuck or self._stuck_behind()
        if not stuck:
            return None
        ranks = {seen.view.rank for seen in stuck}
        others = [seen for seen in self._living() if seen.view.rank not in ranks]
        return find_hang(tuple(map(self._stuck, stuck)), tuple(map(self._stuck, others)))

    def _is_news(self, view: RankView) -> bool:
        seen = self._seen.get(view.rank)
        return seen is None or view.received_at > seen.view.received_at

    def _add(self, view: RankView) -> None:
        seen = self._seen.get(view.rank)
        if seen is None or _beats(seen.view) != _beats(view):
            stalled = view.heartbeat.stalled_s if view.heartbeat else 0.0
            self._seen[view.rank] = _Seen(view, min(stalled, self._most_per_look_s))
            return
        if view.heartbeat and seen.view.heartbeat:
            passed = view.heartbeat.stalled_s - seen.view.heartbeat.stalled_s
        else:
            passed = view.received_at - seen.view.received_at
        seen.news_s = min(max(passed, 0.0), self._most_per_look_s)
        seen.view, seen.stalled_s = view, seen.stalled_s + seen.news_s

    def _living(self) -> list[_Seen]:
        """Whether a rank died is for others to say; those that wait for it are no hang."""
        return [
            self._seen[rank] for rank in sorted(self._seen) if self._seen[rank].view.state not in ("Z", "X")
        ]

    def _behind(self) -> list[_Seen]:
        """The ranks that have done least; one without a heartbeat has done nothing."""
        living = self._living()
        least = min((_progress(seen.view) for seen in living), default=())
        return [seen for seen in living if _progress(seen.view) == least]

    def _stuck_behind(self) -> list[_Seen]:
        """The ranks that have done least, if all of them have stood still for too long."""
        behind = self._behind()
        # Whoever was just released by a slow peer has had no time yet to go on.
        released = any(seen.behind_s <= self._allowed(seen.view) / 2 for seen in behind)
        return behind if not released and all(map(self._exceeds, behind)) else []

    def _exceeds(self, seen: _Seen) -> bool:
        return seen.stalled_s > self._allowed(seen.view)

    def _stuck(self, seen: _Seen) -> Stuck:
        return Stuck(seen.view, seen.stalled_s, self._allowed(seen.view))

    def _allowed(self, view: RankView) -> float:
        """Seconds that may pass between two beats of this rank now."""
        beat = view.heartbeat
        if beat is None:
            return self.section.start_s
        if view.state == "T":  # waits for no storage, whatever its phase
            return _MEDIANS * (beat.median_step_s or 0.0) + self.section.grace_s
        if beat.phase in (Phase.CHECKPOINT, Phase.FINISH):
            return max(_SAVING_S, self.section.start_s)
        patience = 0.0 if beat.phase in (Phase.COMPUTE, Phase.UPDATE) else beat.patience_s
        return self._usual(beat) + patience

    def _usual(self, beat: Heartbeat) -> float:
        if beat.phase in (Phase.START, Phase.COMPILE) or beat.first_step_s is None:
            return self.section.start_s
        known = beat.longest_gap_s if beat.phase is Phase.EVALUATE else beat.median_step_s
        if known is None:
            return min(self.section.start_s, max(_UNKNOWN_S, _MEDIANS * beat.first_step_s))
        return _MEDIANS * known + self.section.grace_s


def _phase(view: RankView) -> Phase:
    return view.heartbeat.phase if view.heartbeat else Phase.START


def _beats(view: RankView) -> tuple[int, int] | None:
    return (view.heartbeat.pid, view.heartbeat.beats) if view.heartbeat else None


def _progress(view: RankView) -> tuple[int, ...]:
    return view.heartbeat.progress if view.heartbeat else ()
