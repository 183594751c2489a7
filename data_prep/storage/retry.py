"""Patience with remote storage, and errors of it that a user understands.

s3fs and gcsfs try a request again a few times within seconds (throttling, 5xx, cut connections); fsspec's HTTP
does not. `retried` goes on where they give up, so that a storage outage of a minute or two stops nobody.
"""

from __future__ import annotations

import logging
import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from data_prep.errors import DataPrepError, PrepCause, Unreachable
from data_prep.storage.urls import scrubbed, shown

T = TypeVar("T")
_log = logging.getLogger(__name__)

MANIFEST_SAYS = "the dataset's manifest says: copy the dataset to its place again (`convmlp data copy`)"

# A generator of its own: the global one belongs to the augmentation of the sample that is being read.
_jitter = random.Random()


@dataclass(frozen=True)
class Patience:
    """How long transient errors are borne: pauses grow from `first_pause` to `longest_pause`, in seconds. There is a
    second try in any case: the first may have lasted longer than `total`."""

    total: float = 120.0
    first_pause: float = 0.25
    longest_pause: float = 10.0


def retried(work: Callable[[], T], url: str, patience: Patience | None = None) -> T:
    """`work()`, again and again while its errors are transient.

    Raises:
        DataPrepError: there is no such file, or it ends before the range; raised from the library's error.
        Unreachable: all other errors: with the cause `storage` where they lasted longer than the patience, `job` where
            access is refused, the request is wrong or the certificate isn't valid.
    """
    patience = patience or Patience()
    deadline, pause, tries = time.monotonic() + patience.total, patience.first_pause, 0
    while True:
        tries += 1
        try:
            return work()
        except DataPrepError:
            raise
        except Exception as error:
            left = deadline - time.monotonic()
            if not is_transient(error) or (left <= 0 and tries > 1):
                raise _explained(error, url, tries, patience) from error
            if tries == 1:
                _log.warning("%s: %s; trying again", shown(url), _reason(error))
        time.sleep(max(0.0, min(_jitter.uniform(pause / 2, pause), left)))
        pause = min(2 * pause, patience.longest_pause)


# A server that has answered so will answer so again; 416: the file ends before the range.
_LASTING_STATUS = frozenset({400, 401, 403, 404, 416})
# S3 sends some of these with status 400.
_PASSING_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError"}
)
# Wrong names and rights, a certificate that isn't valid, and bugs.
_LASTING = (
    FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError,
    TypeError, ValueError, LookupError, AttributeError, ImportError, NotImplementedError, AssertionError,
    ArithmeticError, MemoryError,
)  # fmt: skip
# Raised before a request is sent: the client's set-up is incomplete.
_SET_UP = {
    ("botocore", "NoCredentialsError"),
    ("botocore", "PartialCredentialsError"),
    ("botocore", "ProfileNotFound"),
    ("botocore", "NoRegionError"),
    ("botocore", "ParamValidationError"),
    ("botocore", "ValidationError"),
    ("google", "DefaultCredentialsError"),
}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: everything but an answer that lasts, and mistakes of this side."""
    if any(_code(link) in _PASSING_CODES for link in _chain(error)):
        return True
    if isinstance(error, _LASTING) or _bad_certificate(error):
        return False
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return not names & _SET_UP and not {_status(link) for link in _chain(error)} & _LASTING_STATUS


def _bad_certificate(error: BaseException) -> bool:
    link: BaseException | None = error
    while link is not None and not isinstance(link, ssl.SSLCertVerificationError):
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return link is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _status(error: BaseException) -> int | None:
    """The HTTP status: botocore's, aiohttp's or gcsfs's way to tell it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return int(status) if isinstance(status, int | str) and str(status).isdigit() else None


def _explained(error: Exception, url: str, tries: int, patience: Patience) -> DataPrepError:
    statuses = {_status(link) for link in _chain(error)}
    kind: type[DataPrepError] = Unreachable
    cause: PrepCause = "job"
    scheme = urlsplit(url).scheme
    credentials = _CREDENTIALS.get(scheme, "check the access rights")
    if isinstance(error, FileNotFoundError) or 404 in statuses:
        kind, cause = DataPrepError, "data"
        advice = "there is no such file or bucket; check the URL"
        if scheme in ("s3", "s3a"):
            advice += " (and AWS_ENDPOINT_URL, if the storage is not Amazon's)"
    elif isinstance(error, PermissionError) or statuses & {401, 403}:
        advice = f"access is refused; {credentials}"
    elif "Credential" in type(error).__name__ and not is_transient(error):
        advice = f"no credentials are found; {credentials}"
    elif 416 in statuses:
        kind, cause = DataPrepError, "data"
        advice = f"the file is shorter than {MANIFEST_SAYS}"
    elif _bad_certificate(error):
        advice = (
            "its certificate isn't valid here; check the URL, and for a private authority set AWS_CA_BUNDLE (S3) or "
            "SSL_CERT_FILE on every node"
        )
    elif is_transient(error):
        cause = "storage"
        advice = (
            f"gave up after {tries} tries in {patience.total:g} s; check the network, the URL and the storage's "
            "state, then start again: nothing is lost"
        )
    else:
        advice = "check the URL"
    reason = _reason(error)
    for secret in urlsplit(url).netloc.rpartition("@")[0], urlsplit(url).query:
        reason = reason.replace(secret, "…") if secret else reason
    return kind(f"can't read or write {shown(url)}: {advice} [{reason}]", cause=cause)


_S3_CREDENTIALS = (
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on every node "
    """(FSSPEC_S3='{"anon": true}' for a public bucket)"""
)
_GS_CREDENTIALS = (
    "set GOOGLE_APPLICATION_CREDENTIALS on every node "
    """(FSSPEC_GS='{"token": "anon"}' for a public bucket)"""
)
_CREDENTIALS = {
    "s3": _S3_CREDENTIALS,
    "s3a": _S3_CREDENTIALS,
    "gs": _GS_CREDENTIALS,
    "gcs": _GS_CREDENTIALS,
}


def _reason(error: BaseException) -> str:
    text = scrubbed(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
