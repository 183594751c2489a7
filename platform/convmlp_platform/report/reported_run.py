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
from convmlp_platform.health.events import read_events
from convmlp_platform.ledger.proof import check_ledger
from convmlp_platform.ledger.proof_report import LedgerReport
from convmlp_platform.report.blocks import Tone, cut
from convmlp_platform.runs.run_folder import RunFolder, last_job, stored_identity
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal_digest import JournalDigest, digest_of
from convmlp_platform.training.evaluation.evaluation_record import Evaluation, read_evaluations
from convmlp_platform.training.guard.incidents import Incident, read_incidents

_FRESH_S = 90.0
"""A run that has written something in so many seconds is taken for alive."""


@dataclass(frozen=True)
class ReportLimits:
    """What a report may cost. `ledger_bytes`: of a larger ledger the proof is left to its own command. `picture_bytes`:
    of each of the two pictures."""

    ledger_bytes: int | None = None
    picture_bytes: int = 1_200_000


AT_THE_END = ReportLimits(ledger_bytes=64 << 20)
"""Of the report that training makes when it ends: the workers wait for it."""


@dataclass(frozen=True)
class Standing:
    """What has become of a run: a word, and a sentence with what is known."""

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
        return f"{sweep.name}/{self.path.name}" if (sweep / "sweep.json").is_file() else self.path.name

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

    @property
    def last_sign(self) -> float | None:
        """When the run last wrote something, unix seconds."""
        files = (journal_path(self.path), self.folder.events, *self.folder.goodput.glob("attempt-*/*.jsonl"))
        return max((file.stat().st_mtime for file in files if file.is_file()), default=None)


def _standing(facts: ReportedRun) -> Standing:
    digest, events, evaluations = facts.digest, facts.events, facts.evaluations
    step = digest.last_step
    if evaluations and evaluations[-1].ended and evaluations[-1].step >= step:
        return Standing("finished", "good", f"It reached its end after step {evaluations[-1].step:,}.")
    ends = [event for event in events if event["kind"] == "attempt_ended"]
    last = events[-1] if events else {}
    message = cut(str((ends[-1] if ends else {}).get("message") or "")).rstrip(".")
    told = f": {message}" if message else ""
    if last.get("kind") == "driver_ended" and (digest.last_time or 0.0) < last["time"] + _FRESH_S:
        code = last.get("exit_code")
        before = "before its first step" if not step else f"after step {step:,}"
        if isinstance(code, int) and code > 128:
            return Standing(
                "stopped", "plain", f"It was told to stop {before}; the same command goes on{told}."
            )
        if code != 0:
            return Standing("failed", "bad", f"It failed {before}{told}.")
    if not step and not digest.starts and not events and facts.account is None:
        return Standing("not begun", "faint", "Training has not begun: there is no record of it yet.")
    sign = facts.last_sign
    if sign is not None and time.time() - sign < _FRESH_S:
        return Standing(
            "running", "plain", f"It is running, or was {_FRESH_S:.0f} s ago; step {step:,} is on record."
        )
    if digest.status == "FAILED":
        return Standing("failed", "bad", f"It failed after step {step:,}{told}.")
    if digest.status == "KILLED":
        return Standing(
            "stopped", "plain", f"It was told to stop after step {step:,}; the same command goes on."
        )
    if digest.status == "FINISHED":
        return Standing("finished", "good", f"It reached its end after step {step:,}.")
    return Standing(
        "died", "bad", f"Its processes are gone since, after step {step:,}; the same command goes on{told}."
    )
