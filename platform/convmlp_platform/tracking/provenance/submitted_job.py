"""A job as a user gave it, and what the driver knew when it started: `RUN/lineage/submission.json` and files beside it.

Workers know the job with all its values, not the file and the words it came from; and where they run from an image, or
from the copy of the code that Ray unpacks, not the commit either.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convmlp_platform.config.explain import yaml_text
from convmlp_platform.config.explain.job_file import EXTENDS
from convmlp_platform.errors import ConfigError
from convmlp_platform.tracking.journal import now_ms
from convmlp_platform.tracking.provenance.code_state import CodeDiff, CodeState, this_code
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import Count, DamagedJson, read_json
from data_prep.storage.secret_texts import redacted

FOLDER = "lineage"
"""In a run's or result's folder, and among the artifacts of its MLflow run."""
SUBMISSION, GIVEN_JOB, BASE_JOB, DRIVER_DIFF = (
    "submission.json", "given_job.yaml", "base_job.yaml", "driver.patch",
)  # fmt: skip


@dataclass(frozen=True)
class GivenJob:
    """A job file and what was laid over it, without secrets.

    Args:
        file: as it was named.
        text: its content.
        overrides: `a.b=c` of each `--set`, in their order.
        base: the content of the file that it extends; None: it extends none.
    """

    file: str
    text: str
    overrides: tuple[str, ...] = ()
    base: str | None = None


@dataclass(frozen=True)
class Submission:
    """A start of a job.

    Args:
        file, overrides: of the given job; empty where no file was given (a trial of a sweep, a program).
        host: the driver's.
        time_ms: of the start, milliseconds since the epoch.
        code: the driver's.
    """

    file: str
    overrides: tuple[str, ...]
    host: str
    time_ms: int
    code: CodeState


@dataclass(frozen=True)
class _StoredDiff:
    sha256: str
    bytes: Count
    redacted: Count = 0
    binary: bool = False
    kept: bool = False


@dataclass(frozen=True)
class StoredCode:
    """A `CodeState` as it is stored: the diff's text lies in a file beside it."""

    commit: str | None = None
    origin: str = ""
    dirty: bool | None = None
    diff: _StoredDiff | None = None
    trees: dict[str, str] | None = None
    files: dict[str, str] | None = None
    version: str | None = None

    def state(self, diff_file: Path) -> CodeState:
        """The state, with the diff from its file where that is there."""
        diff = None
        if self.diff is not None:
            text = None
            if self.diff.kept:
                try:
                    text = diff_file.read_bytes().decode(errors="surrogateescape")
                except OSError:
                    text = None
            diff = CodeDiff(self.diff.sha256, self.diff.bytes, text, self.diff.redacted, self.diff.binary)
        return CodeState(
            self.commit, self.origin, self.dirty, diff, self.trees or {}, self.files or {}, self.version
        )


@dataclass(frozen=True)
class _StoredSubmission:
    file: str
    overrides: list[str]
    host: str
    time_ms: Count
    code: StoredCode


def given_job(file: str | Path, overrides: Sequence[str]) -> GivenJob | None:
    """The job file as it is now, and the one that it extends; None where they can't be read."""
    try:
        text = Path(file).read_text()
        named = yaml_text.parse(text, str(file))
        extends = named.get(EXTENDS) if isinstance(named, dict) else None
        base = (
            (Path(file).parent / Path(extends).expanduser()).read_text() if isinstance(extends, str) else None
        )
    except (OSError, UnicodeDecodeError, ConfigError):
        return None
    return GivenJob(
        str(file),
        redacted(text)[0],
        tuple(redacted(one)[0] for one in overrides),
        None if base is None else redacted(base)[0],
    )


def write_submission(folder: Path, given: GivenJob | None) -> None:
    """Write what this driver knows, for the process that records the run. To be called under the run's lease.

    Args:
        folder: of the run.
        given: None: no file was given.

    Raises:
        OSError: the folder can't be written.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    code = this_code()
    texts = {
        GIVEN_JOB: None if given is None else given.text,
        BASE_JOB: None if given is None else given.base,
    }
    for name, text in texts.items():
        if text is None:
            (place / name).unlink(missing_ok=True)
        else:
            write_atomically(place / name, text.encode())
    write_diff(place / DRIVER_DIFF, code)
    values = {
        "file": "" if given is None else given.file,
        "overrides": [] if given is None else list(given.overrides),
        "host": socket.gethostname(),
        "time_ms": now_ms(),
        "code": code.facts(),
    }
    write_atomically(place / SUBMISSION, as_json(values))


def read_submission(folder: Path) -> Submission | None:
    """What the driver of this run wrote; None where none did, or it can't be read."""
    place = folder / FOLDER
    try:
        found = read_json(place / SUBMISSION, _StoredSubmission)
    except (OSError, DamagedJson):
        return None
    code = found.code.state(place / DRIVER_DIFF)
    return Submission(found.file, tuple(found.overrides), found.host, found.time_ms, code)


def write_diff(path: Path, code: CodeState) -> None:
    """Write the diff's text, or remove an earlier one.

    Raises:
        OSError: the folder can't be written.
    """
    if code.diff is None or code.diff.text is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, code.diff.text.encode(errors="surrogateescape"))


def submission_tags(submission: Submission | None) -> dict[str, str]:
    """The job's file and overrides as tags; empty where they are unknown."""
    if submission is None or not submission.file:
        return {}
    return {"job.file": submission.file, "job.overrides": json.dumps(list(submission.overrides))}


def as_json(values: dict[str, Any]) -> bytes:
    """JSON for people and programs; text that is no UTF-8 is escaped."""
    return json.dumps(values, indent=1, sort_keys=True).encode() + b"\n"
