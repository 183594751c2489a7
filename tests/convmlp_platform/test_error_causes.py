"""Errors cross process borders as values: class, cause, message, details."""

from __future__ import annotations

import errno
import json
import pickle

import pytest

from convmlp_platform import errors
from convmlp_platform.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ErrorRecord,
    NumbersError,
    PlatformError,
    RemoteError,
    StorageUnreachable,
    cause_of,
    data_error,
    recorded,
)
from data_prep.errors import DataPrepError, Unreachable


def raised_from(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PlatformError("x"), "job"),
        (ConfigError("connection reset by peer"), "job"),
        (DataError("gave up after 20 tries: Connection refused"), "data"),
        (DataError("x", cause="storage"), "storage"),
        (StorageUnreachable("x"), "storage"),
        (StorageUnreachable("access is refused", cause="job"), "job"),
        (CheckpointError("x"), "job"),
        (NumbersError("x"), "numbers"),
        (DataPrepError("x"), "data"),
        (Unreachable("x"), "storage"),
        (Unreachable("access is refused", cause="job"), "job"),
        (OSError(errno.EIO, "Input/output error"), "storage"),
        (OSError(errno.ENOTCONN, "Transport endpoint is not connected"), "storage"),
        (TimeoutError(), "storage"),
        (OSError("an image that Pillow doesn't know"), "code"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "code"),
        (ValueError("Input/output error"), "code"),
        (raised_from(CheckpointError("can't write"), OSError(errno.ENOSPC, "No space")), "storage"),
        (raised_from(CheckpointError("can't write"), PermissionError(errno.EACCES, "denied")), "job"),
        (raised_from(CheckpointError("x", cause="job"), OSError(errno.ENOSPC, "No space")), "job"),
        (raised_from(ValueError("seven"), OSError(errno.ENOSPC, "No space")), "code"),
    ],
)  # fmt: skip
def test_the_cause_is_a_value(error: Exception, cause: str) -> None:
    assert cause_of(error) == cause


ours = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PlatformError)]


@pytest.mark.parametrize("kind", ours)
@pytest.mark.parametrize("cause", [None, "storage"])
def test_an_error_survives_pickle_and_json(kind: type[PlatformError], cause: errors.Cause | None) -> None:
    error = kind("one\ntwo", cause=cause, details={"sample": 7})
    fields = json.loads(json.dumps(recorded(error).to_json()))
    for back in (pickle.loads(pickle.dumps(error)), ErrorRecord.from_json(fields).error()):
        assert type(back) is kind
        assert (str(back), back.cause, back.details) == ("one\ntwo", error.cause, {"sample": 7})


def test_an_error_of_data_preparation_survives_pickle_and_becomes_the_platforms() -> None:
    error = pickle.loads(pickle.dumps(DataPrepError("x", cause="storage", details={"a": 1})))
    assert (type(error), error.cause, error.details) == (DataPrepError, "storage", {"a": 1})
    found = data_error(Unreachable("s3://b is away"), "data.path: ")
    assert (type(found), found.cause, str(found)) == (
        StorageUnreachable,
        "storage",
        "data.path: s3://b is away",
    )


def test_an_error_of_code_keeps_its_name_and_traceback_over_two_borders() -> None:
    try:
        raise KeyError("nccl_blocks")
    except KeyError as error:
        record = recorded(error)
    remote = pickle.loads(pickle.dumps(record.error()))
    assert isinstance(remote, RemoteError)
    assert recorded(remote) == record
    assert record.headline == "KeyError: 'nccl_blocks'"
    assert record.cause == "code"
    assert 'raise KeyError("nccl_blocks")' in str(remote)
