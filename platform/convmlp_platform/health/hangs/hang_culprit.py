"""A hang: which rank keeps the others waiting, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from convmlp_platform.health.hangs.waiting import WaitsFor, main_thread, readers_in, waits_for
from convmlp_platform.health.heartbeat.heartbeat import Heartbeat
from convmlp_platform.health.heartbeat.phases import Phase

_DOING = {
    Phase.START: "starting",
    Phase.COMPILE: "in its first step, {step}",
    Phase.DATA: "waiting for the data of step {step}",
    Phase.COMPUTE: "computing step {step}",
    Phase.UPDATE: "ending step {step}",
    Phase.EVALUATE: "evaluating after step {step}",
    Phase.CHECKPOINT: "saving after step {step}",
    Phase.FINISH: "finishing after step {step}",
}
# States of a process that no other rank can end.
_STATES = {
    "T": "its process is stopped by a signal (state T)",
    "t": "its process is held by a debugger (state t)",
    "D": "its process waits for a disk or a device (state D)",
}
_MOST_TOLD, _MOST_RANKS = 4, 8


@dataclass(frozen=True)
class RankView:
    """An agent's view of its rank at one moment.

    Args:
        host: of the node.
        heartbeat: None where the process hasn't made one yet.
        state: `process_view.state_of` its process; Z and X mean that it is dead, empty that it isn't known.
        received_at: when the view came in, by the watcher's monotonic clock; a later view has a later time.
    """

    rank: int
    host: str
    heartbeat: Heartbeat | None
    state: str = ""
    received_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Stuck:
    """A rank that stands still: for how many seconds that was seen, and how many it might have."""

    view: RankView
    stalled_s: float
    allowed_s: float

    def doing(self) -> str:
        """`waiting for the data of step 8 (train-00017.tar)`."""
        beat = self.view.heartbeat
        if beat is None:
            return "not even starting"
        text = _DOING[beat.phase].format(step=beat.step)
        if beat.micro_batch and beat.phase in (Phase.COMPUTE, Phase.EVALUATE):
            text += f", micro-batch {beat.micro_batch}"
        return text + (f" ({beat.note})" if beat.note else "")


@dataclass(frozen=True)
class Hang:
    """Ranks that stand still.

    Args:
        suspects: who may keep the others waiting, the culprit first; several where nothing tells them apart.
        others: the other living ranks.
        reason: what tells the suspects from the others.
        where: by rank, the place in the code where its main thread stands.
        readers: what the culprit's reader processes do, one text each.
    """

    suspects: tuple[Stuck, ...]
    others: tuple[Stuck, ...]
    reason: str
    where: Mapping[int, str] = field(default_factory=dict)
    readers: tuple[str, ...] = ()

    @property
    def is_sure(self) -> bool:
        """Whether one rank alone is to blame."""
        return len(self.suspects) == 1

    @property
    def rank(self) -> int:
        """The culprit, or the first of the suspects."""
        return self.suspects[0].view.rank

    @property
    def host(self) -> str:
        """The culprit's node."""
        return self.suspects[0].view.host

    @property
    def phase(self) -> Phase:
        """Phase that the culprit was in."""
        beat = self.suspects[0].view.heartbeat
        return beat.phase if beat else Phase.START

    @property
    def step(self) -> int:
        """In which step."""
        beat = self.suspects[0].view.heartbeat
        return beat.step if beat else 0

    @property
    def note(self) -> str:
        """The shards it waits for, where it waits for data."""
        beat = self.suspects[0].view.heartbeat
        return beat.note if beat else ""

    @property
    def stalled_s(self) -> float:
        """For how long it has been seen without progress."""
        return self.suspects[0].stalled_s

    def with_stacks(self, stacks: Mapping[int, str]) -> Hang:
        """The same hang in the light of `collect_stacks` of every rank that could be asked.

        Of several ranks that are equally far, those that wait for other ranks are not to blame. Nor is one that is
        behind but surely waits for others, if there is one that doesn't: beats are coarser than collectives.
        """
        frames = {rank: main_thread(text) for rank, text in stacks.items()}
        where = {rank: str(found[0]) for rank, found in frames.items() if found}
        known = replace(self, where=where)
        blame = {one: _blame(one, stacks) for one in (*self.suspects, *self.others)}
        most = max(blame[one] for one in self.suspects)
        pool, reason = self.suspects, "it alone doesn't wait for other ranks"
        if most == WaitsFor.RANKS.value and max(blame.values()) >= WaitsFor.DATA.value:
            pool, most = self.others, max(blame.values())
        suspects = tuple(one for one in pool if blame[one] == most)
        if len(suspects) > 1 or suspects == self.suspects:
            reason = self.reason
        others = tuple(one for one in (*self.suspects, *self.others) if one not in suspects)
        readers = readers_in(stacks.get(suspects[0].view.rank, ""))
        return replace(known, suspects=suspects, others=others, reason=reason, readers=readers)

    def message(self) -> str:
        """One paragraph for the error and the record of the run."""
        if self.is_sure:
            told = f"rank {self._told(self.suspects[0])}"
        else:
            names = _ranks(self.suspects)
            told = (
                f"{names} stand still, and nothing tells which of them keeps the others waiting: "
                + "; ".join(f"rank {self._told(one)}" for one in self.suspects[:_MOST_TOLD])
            )
        if self.reason:
            told += f". Why: {self.reason}"
        if self.readers:
            told += f". Its readers and other processes: {'; '.join(self.readers[:_MOST_TOLD])}"
        if self.others:
            doing = dict.fromkeys(one.doing() for one in self.others)
            told += f". Meanwhile {_ranks(self.others)}: {'; '.join(list(doing)[:_MOST_TOLD])}"
        return told

    def _told(self, one: Stuck) -> str:
        view = one.view
        place = f", at {self.where[view.rank]}" if view.rank in self.where else ""
        return (
            f"{view.rank} on {view.host} stands still: {one.doing()}, for {one.stalled_s:.1f} s "
            f"({one.allowed_s:.1f} s are allowed){place}"
        )


def find_hang(stuck: tuple[Stuck, ...], others: tuple[Stuck, ...]) -> Hang:
    """Of ranks that stand still equally far behind the others, those in a state that nobody else can end."""
    by_state = tuple(one for one in stuck if one.view.state in _STATES)
    if by_state:
        rest = tuple(one for one in stuck if one not in by_state)
        return Hang(by_state, (*rest, *others), _STATES[by_state[0].view.state])
    reason = "it is behind all others" if others and len(stuck) == 1 else ""
    if all(one.view.heartbeat and one.view.heartbeat.phase is Phase.DATA for one in stuck):
        reason = "nobody waits for another rank there, but for data"
    return Hang(stuck, others, reason)


def _blame(one: Stuck, stacks: Mapping[int, str]) -> int:
    if one.view.state in _STATES:
        return WaitsFor.NOTHING.value + 1
    return waits_for(stacks.get(one.view.rank, "")).value


def _ranks(them: Iterable[Stuck]) -> str:
    names = [str(one.view.rank) for one in them]
    if len(names) > _MOST_RANKS:
        names = [*names[:_MOST_RANKS], f"{len(names) - _MOST_RANKS} more"]
    return f"rank {names[0]}" if len(names) == 1 else f"ranks {', '.join(names[:-1])} and {names[-1]}"
