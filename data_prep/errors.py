"""The errors of data preparation: most end the job, one leaves one sample out."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, Literal

PrepCause = Literal["job", "data", "storage"]
"""`job`: it asks for what can't be done or isn't permitted. `data`: files are missing, damaged or not what they should
be. `storage`: it failed, and the same may work later."""


class DataPrepError(ValueError):
    """A dataset can't be prepared, read or trusted; the message says what, where and what to do.

    Args:
        cause: overrides the class's.
        details: facts for programs, as JSON values.
    """

    cause: PrepCause = "data"

    def __init__(
        self, *message: object, cause: PrepCause | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(*message)
        self.details = dict(details or {})
        if cause is not None:
            self.cause = cause


class Unreachable(DataPrepError):
    """The storage can't be asked now, or refuses: that says nothing about the files in it."""

    cause: PrepCause = "storage"


class RejectedSample(ValueError):
    """One sample can't be used; the message says why and goes into `rejected.jsonl`."""


# What the same request would meet again: names, rights and arguments that are wrong, and what concerns no storage.
_LASTING = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY,
        errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EBADF, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP,
        errno.ENOTTY, errno.ESPIPE, errno.EILSEQ, errno.ECHILD, errno.ESRCH, errno.ENOMEM, errno.ENOEXEC,
    }
)  # fmt: skip


def os_cause(error: OSError) -> PrepCause:
    """The cause of an error of a file system: `storage` where it may pass, else `job`."""
    return "storage" if may_pass(error) else "job"


def may_pass(error: OSError) -> bool:
    """Whether the storage failed, rather than the request: a full disk, an I/O error, a server that is away."""
    if error.errno is None:
        return isinstance(error, ConnectionError | TimeoutError)
    return error.errno not in _LASTING
