"""The errors a user can fix, and the cause of any error. The command line prints them without a traceback and exits
with code 2.

An error crosses a process border as an `ErrorRecord`: values, not a text to be parsed.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from data_prep.errors import DataPrepError, Unreachable, may_pass

Cause = Literal["job", "data", "storage", "hardware", "preemption", "code", "numbers", "hang"]
"""`job`: the user asked for what can't be done. `data`: a dataset is missing, damaged or another one. `storage`: it
failed and may come back. `hardware`: a process, node or device died. `preemption`: it was taken away. `code`: a bug.
`numbers`: loss or gradients stayed wrong. `hang`: a rank stood still."""


class PlatformError(Exception):
    """Base of all errors that name what is wrong, where, and what to do about it.

    Args:
        cause: overrides the class's.
        details: facts for programs, as JSON values.
    """

    exit_code = 2
    cause: Cause = "job"

    def __init__(
        self, *message: object, cause: Cause | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(*message)
        self.details = dict(details or {})
        if cause is not None:
            self.cause = cause


class ConfigError(PlatformError):
    """The job file, or a combination of its values, is wrong."""


class DataError(PlatformError):
    """A dataset is missing, damaged, or not the one the job names."""

    cause: Cause = "data"


class StorageUnreachable(DataError):
    """The storage can't be asked now, or refuses access: not a sign of damage, so no sample is given up for it."""

    cause: Cause = "storage"


class CheckpointError(PlatformError):
    """A checkpoint can't be written, read, or doesn't belong to this run."""


class SupersededError(CheckpointError):
    """Another attempt at the run has begun: this one is not its writer any more."""


class TrackingError(PlatformError):
    """The tracking server or model registry can't serve the request."""


class LaunchError(PlatformError):
    """The cluster can't be reached or can't hold the job."""


class NumbersError(PlatformError):
    """Loss or gradients stayed wrong through all that `guard` allows."""

    cause: Cause = "numbers"


class RemoteError(Exception):
    """An error in another process that is none of the platform's: a bug, or a failure of its machine.

    Args:
        record: of the error; its traceback is the message.
    """

    def __init__(self, record: ErrorRecord) -> None:
        super().__init__(record)
        self.record = record

    def __str__(self) -> str:
        return f"{self.record.message}\n\nin another process:\n{self.record.traceback}".rstrip()


@dataclass(frozen=True)
class ErrorRecord:
    """An exception as values that JSON and pickle can carry.

    Args:
        type: its class's name.
        kind: the name of the class here that it is an instance of; None for errors that aren't the platform's.
    """

    type: str
    cause: Cause
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None
    traceback: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ErrorRecord:
        """Undo `to_json`."""
        return cls(**fields)

    @property
    def headline(self) -> str:
        """`Type: first line`."""
        lines = [line.strip() for line in self.message.splitlines() if line.strip()]
        return f"{self.type}: {lines[0]}" if lines else self.type

    def error(self) -> Exception:
        """The exception again: of the platform's class where it had one, else a `RemoteError`."""
        kind = _KINDS.get(self.kind or "")
        if kind is None:
            return RemoteError(self)
        return kind(self.message, cause=self.cause, details=self.details)


_KINDS: dict[str, type[PlatformError]] = {
    kind.__name__: kind
    for kind in (
        PlatformError, ConfigError, DataError, StorageUnreachable, CheckpointError, SupersededError, TrackingError,
        LaunchError, NumbersError,
    )
}  # fmt: skip


def recorded(error: BaseException) -> ErrorRecord:
    """The record of an exception, its traceback included."""
    if isinstance(error, RemoteError):
        return error.record
    ours = data_error(error) if isinstance(error, DataPrepError) else error
    kind = next((one.__name__ for one in type(ours).__mro__ if one in _KINDS.values()), None)
    return ErrorRecord(
        type(error).__name__,
        cause_of(error),
        str(error),
        dict(getattr(error, "details", {})),
        kind,
        "".join(traceback.format_exception(error)),
    )


def cause_of(error: BaseException) -> Cause:
    """The cause that an exception stands for: its own, or that of the storage error that it was raised from."""
    if isinstance(error, RemoteError):
        return error.record.cause
    if isinstance(error, PlatformError | DataPrepError):
        said = "cause" in vars(error)
        return "storage" if not said and _from_storage(error.__cause__) else error.cause
    return "storage" if isinstance(error, OSError) and may_pass(error) else "code"


def _from_storage(error: BaseException | None) -> bool:
    return error is not None and cause_of(error) == "storage"


def data_error(error: DataPrepError, where: str = "") -> DataError:
    """An error of data preparation as the platform's, with the same cause; `where` comes before its message."""
    kind = StorageUnreachable if isinstance(error, Unreachable) else DataError
    return kind(f"{where}{error}", cause=cause_of(error), details=error.details)
