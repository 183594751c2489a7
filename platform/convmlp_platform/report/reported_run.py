"""All that is known of a run, read when it is asked for and once; every figure by the function whose it is.

The account of time is `goodput.account`'s, the proof `ledger.proof`'s: what `convmlp goodput` and `convmlp data ledger`
print.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from convmlp_platform.config.automatic import value_at
from convmlp_platform.config.identity import identity_of
from convmlp_platform.errors import DataError
from convmlp_platform.goodput.account import Goodput, Price, account_of
from convmlp_platform.goodput.goodput_log import newest_log
from convmlp_platform.health.events import read_events
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.ledger.proof_report import LedgerReport
from convmlp_platform.report.blocks import Tone, cut, minute
from convmlp_platform.runs.find_run import SWEEP_NAME
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.runs.run_folder import RunFolder, last_job, stored_identity
from convmlp_platform.runs.run_state import NOT_BEGUN, RunState, StateFacts, last_sign, state_of
from convmlp_platform.runs.trial_record import Ended, read_end
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal_digest import JournalDigest, digest_of
from convmlp_platform.training.evaluation.evaluation_record import Evaluation, read_evaluations
from convmlp_platform.training.guard.incidents import Incident, read_incidents
from data_prep.storage.locks import LockView


@dataclass(frozen=True)
class ReportLimits:
    """What a report may cost. `ledger_bytes`: of a larger ledger the proof is left to its own command. `picture_bytes`:
    of each of the two pictures. `at_the_end`: the run makes it itself, as the last thing it does: it is finished,
    though its driver still has it."""

    ledger_bytes: int | None = None
    picture_bytes: int = 1_200_000
    at_the_end: bool = False


AT_THE_END = ReportLimits(ledger_bytes=64 << 20, at_the_end=True)
"""Of the report that training makes when it ends: the workers wait for it."""


@dataclass(frozen=True)
class Standing:
    """What has become of a run: its state's name, and a sentence with what is known."""

    word: str
    tone: Tone
    sentence: str


class ReportedRun:
    """A run in its folder. Each property raises what reading it raises: OSError, PlatformError, DataPrepError."""

    def __init__(self, path: Path, price: Price | None = None, limits: ReportLimits | None = None) -> None:
        self.path, self.price, self.limits = path, price, limits or ReportLimits()
        self.folder = RunFolder(path, "")

    @property
    def name(self) -> str:
        """The run's; of a trial, with its sweep's."""
        sweep = self.path.parent
        return f"{sweep.name}/{self.path.name}" if (sweep / SWEEP_NAME).is_file() else self.path.name

    @cached_property
    def job(self) -> dict[str, Any]:
        """As it was last started; empty where that can't be read."""
        return last_job(self.path)

    def setting(self, dotted: str) -> Any:
        """A value of the job by its dotted name; None where there is none."""
        return value_at(self.job, dotted)

    @cached_property
    def digest(self) -> JournalDigest:
        return digest_of(journal_path(self.path))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.folder.events)

    @cached_property
    def account(self) -> Goodput | None:
        """As `convmlp goodput` has it."""
        return account_of(self.path, self.price)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        return read_evaluations(self.folder.evaluations)

    @cached_property
    def incidents(self) -> list[Incident]:
        return read_incidents(self.folder.incidents)

    @cached_property
    def identity(self) -> str | None:
        """None where the run has not begun."""
        fields = stored_identity(self.path)
        return None if fields is None else identity_of(fields)

    @property
    def ledger_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.ledger.glob("attempt-*/*.ledger"))

    @property
    def may_prove(self) -> bool:
        """Whether the ledger is small enough for this report."""
        return self.limits.ledger_bytes is None or self.ledger_bytes <= self.limits.ledger_bytes

    @cached_property
    def proof(self) -> LedgerReport | str:
        """As `convmlp data ledger` has it, or why there is none."""
        try:
            return check_ledger(self.path)
        except DataError as error:
            return str(error)

    @cached_property
    def standing(self) -> Standing:
        return _standing(self)

    @cached_property
    def end(self) -> Ended | None:
        """Of a sweep's trial."""
        return read_end(self.path)

    @cached_property
    def state(self) -> RunState:
        """As `convmlp runs` has it."""
        if self.limits.at_the_end:
            return RunState("finished")
        facts = StateFacts(self.events, self._lease, self.digest.status, self.end, self.last_sign)
        return state_of(facts, time.time())

    @cached_property
    def last_sign(self) -> float | None:
        """When the run last gave a sign of life, unix seconds."""
        return last_sign(self._lease, self.events, newest_log(self.folder.goodput), self.digest.last_time)

    @cached_property
    def _lease(self) -> LockView | None:
        return run_lease(self.path).view()


def _standing(facts: ReportedRun) -> Standing:
    state, step = facts.state, max([facts.digest.last_step, *(one.step for one in facts.evaluations[-1:])])
    note, sign = cut(state.note).rstrip("."), facts.last_sign
    at = f"after step {step:,}" if step else "before its first step"
    on_record = f"step {step:,} is on record" if step else "no step is on record"
    heard = "" if sign is None else f" Its last sign of life was at {minute(sign)}."
    again = "; the same command goes on" if facts.end is None else ""
    match state.name:
        case "finished":
            return Standing("finished", "good", f"It reached its end {at}.")
        case "stopped":
            by = f", {note}" if note else ""
            return Standing("stopped", "plain", f"It was told to stop {at}{by}{again}.")
        case "died":
            why = f": {note}" if note else ""
            return Standing("died", "bad", f"It died {at}{why}{again}.{heard}")
        case "silent":
            return Standing(
                "silent", "bad", f"There is {note}: it may be dead, or cut off; {on_record}.{heard}"
            )
        case "waiting" if state.note == NOT_BEGUN:
            return Standing("waiting", "faint", "Training has not begun: there is no record of it yet.")
        case name:
            more = f" ({note})" if note else ""
            return Standing(name, "plain", f"It is {name}{more}; {on_record}.")
