"""Everything that a storage may say today and not tomorrow is borne; what it will say again is told at once."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from s3_server import forget_filesystems

from data_prep.errors import DataPrepError, Unreachable
from data_prep.storage.remote_files import read_file
from data_prep.storage.retry import Patience, is_transient, retried

HASTE = Patience(total=0.3, first_pause=0.01, longest_pause=0.02)


class Answered(Exception):
    """As aiohttp and gcsfs tell a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Botocore(Exception):
    """As botocore tells one."""

    def __init__(self, status: int, code: str = "") -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def raised_from(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


LASTING = {400, 401, 403, 404, 416}


@pytest.mark.parametrize(
    "status", [*LASTING, 301, 405, 408, 409, 412, 425, 429, 451, 500, 501, 502, 503, 504, 599]
)
def test_a_status_lasts_or_passes(status: int) -> None:
    for error in (Answered(status), Botocore(status), raised_from(OSError("s3fs's"), Botocore(status))):
        assert is_transient(error) == (status not in LASTING)


def botocore_error(name: str, **fields: Any) -> Exception:
    exceptions = pytest.importorskip("botocore.exceptions")
    error: Exception = getattr(exceptions, name)(**fields)
    return error


@pytest.mark.parametrize(
    "name",
    ["EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ReadTimeoutError",
     "ProxyConnectionError", "HTTPClientError", "IncompleteReadError", "CredentialRetrievalError"],
)  # fmt: skip
def test_what_botocore_raises_without_an_answer_passes(name: str) -> None:
    fields = {"endpoint_url": "http://minio:9000", "proxy_url": "http://proxy", "error": "refused"}
    fields |= {"actual_bytes": 1, "expected_bytes": 2, "provider": "iam", "error_msg": "timed out"}  # type: ignore[dict-item]
    assert is_transient(botocore_error(name, **fields))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (Botocore(400, "RequestTimeout"), True),
        (raised_from(TimeoutError(), Botocore(400, "RequestTimeout")), True),
        (Botocore(400, "ExpiredToken"), False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (EOFError(), True),
        (OSError(5, "Input/output error"), True),
        (RuntimeError("Session is closed"), True),
        (ssl.SSLError("UNEXPECTED_EOF_WHILE_READING"), True),
        (ssl.SSLCertVerificationError("self-signed certificate"), False),
        (FileNotFoundError(), False),
        (raised_from(FileExistsError(), Botocore(412)), False),
        (PermissionError(), False),
        (TypeError("a bug"), False),
        (KeyError("a bug"), False),
    ],
)  # fmt: skip
def test_errors_without_a_status_last_or_pass(error: Exception, passes: bool) -> None:
    assert is_transient(error) == passes


@pytest.mark.parametrize(
    ("error", "kind", "cause", "says"),
    [
        (Answered(409), Unreachable, "storage", "gave up after"),
        (Answered(403), Unreachable, "job", "access is refused"),
        (Answered(400), Unreachable, "job", "check the URL"),
        (Answered(404), DataPrepError, "data", "no such file"),
        (Answered(416), DataPrepError, "data", "shorter than"),
        (ssl.SSLCertVerificationError("self-signed"), Unreachable, "job", "certificate isn't valid"),
    ],
)
def test_the_cause_says_whether_it_may_pass(
    error: Exception, kind: type[DataPrepError], cause: str, says: str
) -> None:
    tries = 0

    def fail() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(DataPrepError, match=says) as raised:
        retried(fail, "s3://bucket/x", HASTE)
    assert (type(raised.value), raised.value.cause) == (kind, cause)
    assert (tries > 2) == (cause == "storage")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def _point_s3_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_filesystems()


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_an_endpoint_that_refuses_connections_is_asked_again(
    scheme: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    if scheme == "s3":
        pytest.importorskip("s3fs")
        _point_s3_at(url, monkeypatch)
        url = f"s3://refused-{closed_port}"
    with pytest.raises(Unreachable, match=r"gave up after (\d\d|[2-9]) tries in 3 s") as raised:
        read_file(f"{url}/x", Patience(total=3.0))
    assert raised.value.cause == "storage"


def test_a_first_try_that_outlasts_the_patience_is_not_the_last() -> None:
    tries = []

    def slow_at_first() -> str:
        tries.append(time.sleep(0.0 if tries else 2 * HASTE.total))
        if len(tries) == 1:
            raise ConnectionResetError
        return "read"

    assert retried(slow_at_first, "s3://bucket/x", HASTE) == "read"
    assert len(tries) == 2


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[str]:
    """The URL of an HTTPS server whose certificate no authority vouches for."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    day = datetime.timedelta(days=1)
    certificate = builder.not_valid_before(now - day).not_valid_after(now + day).sign(key, hashes.SHA256())
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *plain)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("scheme", ["s3", "https"])
def test_a_certificate_that_is_not_valid_is_told_at_once(
    scheme: str, self_signed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://{self_signed}"
    if scheme == "s3":
        pytest.importorskip("s3fs")
        _point_s3_at(url, monkeypatch)
        url = f"s3://untrusted-{self_signed.rpartition(':')[2]}"
    began = time.monotonic()
    with pytest.raises(Unreachable, match="its certificate isn't valid here") as raised:
        read_file(f"{url}/x", Patience(total=60.0))
    assert raised.value.cause == "job"
    assert time.monotonic() - began < 30
