"""The attempts of a run that count, each up to a step: the line of checkpoints that survived."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.ledger.ledger import attempt_folder
from convmlp_platform.ledger.ledger_reader import RecordedAttempt
from convmlp_platform.ledger.proof_report import LINE, LedgerFindings, Span
from data_prep.storage.json_files import Count, DamagedJson, read_json


@dataclass(frozen=True)
class _Saved:
    """The part of a checkpoint's state.json that is looked at."""

    step: Count
    attempt: Count = 0


def surviving_line(attempts: dict[int, RecordedAttempt], findings: LedgerFindings) -> list[Span]:
    """The newest attempt and those it descends from, oldest first.

    Each counts up to the step that the next one went on from; the newest, up to the last step that all of its ranks
    recorded. Steps that no attempt accounts for are problems.
    """
    spans: list[Span] = []
    number, stop = max(attempts), attempts[max(attempts)].stop
    while True:
        header = attempts[number].header
        start = header.start_step
        if stop < start:
            findings.add(
                LINE, f"attempt {number} began at step {start}, yet the next went on from its step {stop}"
            )
        spans.insert(0, Span(number, start, max(start, stop), header.world_size))
        if header.parent == 0:
            if start:
                findings.add(
                    LINE, f"attempt {number} began at step {start}: the steps before are not recorded"
                )
            return spans
        if header.parent not in attempts or header.parent >= number:
            findings.add(LINE, f"attempt {header.parent}, which {number} went on from, has no record")
            return spans
        number, stop = header.parent, start


def check_attempts(folder: Path, attempts: dict[int, RecordedAttempt], findings: LedgerFindings) -> None:
    """No attempt, and no rank's file of one, may have been taken away.

    Raises nothing: what is missing is added to `findings`. An empty folder is an attempt that was killed before
    its first file; one without all of its files and without any frame was killed while it began.
    """
    for number in range(1, max(attempts)):
        if not attempt_folder(folder, number).is_dir():
            findings.add(LINE, f"attempt {number} is missing: {attempt_folder(folder, number).name} is gone")
    for number, attempt in attempts.items():
        if attempt.recorded and attempt.missing_ranks:
            gone = ", ".join(map(str, attempt.missing_ranks[:10]))
            findings.add(
                LINE,
                f"attempt {number} has no file of rank {gone} (of {attempt.header.world_size}), "
                "yet others recorded steps",
            )


def check_checkpoints(run: Path, attempts: dict[int, RecordedAttempt], findings: LedgerFindings) -> None:
    """A checkpoint is committed only after every rank's record of its steps is durable; so it must be there."""
    for path in sorted((run / "checkpoints").glob("step-*/state.json")):
        try:
            saved = read_json(path, _Saved, finite=False)
        except (OSError, DamagedJson):
            continue  # damaged: the run passes it over too
        step, number = saved.step, saved.attempt
        if number and number not in attempts:
            findings.add(
                LINE, f"checkpoint {path.parent.name} was saved by attempt {number}, which has no record"
            )
        elif number and attempts[number].stop < step:
            findings.add(
                LINE,
                f"checkpoint {path.parent.name} was saved by attempt {number}, "
                f"of which only steps up to {attempts[number].stop} are recorded",
            )
