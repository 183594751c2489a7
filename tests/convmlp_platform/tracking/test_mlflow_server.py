"""A server is asked the way MLflow's client asks it, and none of its errors tells a password."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.errors import TrackingError
from convmlp_platform.registry.registry import resolve
from convmlp_platform.tracking.delivery_state import Target, journal_path, save_target, without_secrets
from convmlp_platform.tracking.journal import Journal, MetricsRecord
from convmlp_platform.tracking.mlflow.client import read_run
from convmlp_platform.tracking.mlflow.replayer import Replayer, replay
from convmlp_platform.tracking.mlflow.server import error_text, silence
from convmlp_platform.tracking.mlflow.tracking_uri import check_tracking

Answers = dict[str, tuple[int, str]]


@contextmanager
def server(answers: Answers, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answers by the beginning of the path; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = [answer for path, answer in answers.items() if self.path.startswith(path)]
            code, text = found[0] if found else (404, "<title>404 Not Found</title>")
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        listening.socket = tls.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield listening.server_port
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()


def private_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS, and the certificate by which to know it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a company")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem, file = serialization.Encoding.PEM, folder / "server.pem"
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = certificate.public_bytes(pem)
    file.write_bytes(private + public)
    (folder / "ca.pem").write_bytes(public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, folder / "ca.pem"


def test_a_server_behind_a_private_authority_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, authority = private_certificate(tmp_path)
    with server({"/health": (200, "OK")}, tls) as port:
        assert "certificate verify failed" in str(silence(f"https://127.0.0.1:{port}"))
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
        assert silence(f"https://127.0.0.1:{port}") is None


def test_what_a_wait_does_not_mend_is_a_problem_at_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that can't be checked, and a log-in that is refused; an outage is none."""
    tls, authority = private_certificate(tmp_path)
    answers = {"/health": (200, "OK"), "/api/2.0/mlflow/experiments/get": (401, "You are not authenticated")}
    with server(answers, tls) as port:
        section = TrackingSection(uri=f"https://127.0.0.1:{port}")
        field = f"tracking.uri (='https://127.0.0.1:{port}'): "
        (problem,) = check_tracking(section)
        assert problem.startswith(
            f"{field}the certificate of MLflow at https://127.0.0.1:{port} can't be checked: "
        )
        assert "certificate verify failed" in problem and "MLFLOW_TRACKING_SERVER_CERT_PATH" in problem
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "none.pem"))
        (problem,) = check_tracking(section)
        assert f"invalid path: {tmp_path}/none.pem" in problem
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
        (problem,) = check_tracking(section)
        assert problem.startswith(f"{field}MLflow at https://127.0.0.1:{port} asks for a log-in (401): ")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
        (problem,) = check_tracking(section)
        assert "doesn't know this user and password" in problem and "hunter2" not in problem
        answers["/api/2.0/mlflow/experiments/get"] = (503, "not now")
        assert check_tracking(section) == []
        answers["/api/2.0/mlflow/experiments/get"] = (403, "not yours")
        assert check_tracking(section) == []


def test_a_database_without_its_driver_is_a_problem_at_check(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "convmlp_platform.tracking.mlflow.tracking_uri.find_spec"
    monkeypatch.setattr(module, lambda _package: None)
    (problem,) = check_tracking(TrackingSection(uri="postgresql+psycopg://me:hunter2@host/db"))
    assert "needs the package psycopg, which isn't installed" in problem and "hunter2" not in problem
    assert "pip install 'convmlp-platform[server]'" in problem


LOGGED_MODELS = "/api/2.0/mlflow/logged-models/"


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"/version": (200, "2.9.2")}, "the MLflow 2.9.2 at http://127.0.0.1:PORT is too old for it"),
        ({}, "the MLflow at http://127.0.0.1:PORT is too old for it"),
        ({LOGGED_MODELS: (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}')}, None),
        ({LOGGED_MODELS: (401, "You are not authenticated")}, None),
        ({LOGGED_MODELS: (503, "not now")}, None),
    ],
)
def test_a_server_too_old_for_the_registry_is_found_at_check(answers: Answers, problem: str | None) -> None:
    with server({"/health": (200, "OK"), **answers}) as port:
        section = TrackingSection.model_validate(
            {"uri": f"http://127.0.0.1:{port}", "register_as": {"name": "digits"}}
        )
        found = check_tracking(section)
        if problem is None:
            assert found == []
        else:
            assert found[0].startswith(
                "tracking.register_as (='digits'): " + problem.replace("PORT", str(port))
            )
        assert check_tracking(section.model_copy(update={"register_as": None})) == []


def unsent(uri: str, run_dir: Path) -> None:
    journal = Journal(journal_path(run_dir))
    journal.append(MetricsRecord(step=1, values={"loss": 1.0}))
    journal.close()
    save_target(run_dir, Target(uri="http://elsewhere", experiment="e", run_name="r"))


def replayed(uri: str, run_dir: Path) -> None:
    unsent(uri, run_dir)
    replay(run_dir)


@pytest.mark.parametrize(
    "call",
    [
        replayed,
        lambda uri, _: read_run("0" * 32),
        lambda uri, _: resolve("models:/digits@champion"),
    ],
    ids=["replay-tracking", "compare RUN_ID", "models:/"],
)
@pytest.mark.parametrize("answers", [True, False], ids=["answers", "is away"])
def test_no_password_in_any_message(
    call: Callable[[str, Path], None], answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with server({"/health": (200, "OK"), "/": (500, "anna:s3cret/of)mine s3cret%2Fof%29mine")}) as port:
        uri = f"http://anna:s3cret%2Fof%29mine@127.0.0.1:{port if answers else 1}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(TrackingError) as caught:
            call(uri, tmp_path)
    text, error = str(caught.value), caught.value
    assert f"MLflow at {without_secrets(uri)}" in text
    assert "s3cret" not in text and "anna@" not in text, text
    assert error.__context__ is None or error.__suppress_context__  # a traceback would print it as it is


def test_what_mlflow_drops_is_named_without_a_password(
    store: TrackingSection, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("hunter2 at http://me:hunter2@host/ is bad", INVALID_PARAMETER_VALUE)

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    unsent("", tmp_path)
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    replayer = Replayer(tmp_path, store.uri or "")
    while replayer.advance():
        pass
    assert "is left out: *** at http://host/ is bad" in caplog.text and "hunter2" not in caplog.text


def test_an_error_without_a_text_is_named_by_its_type() -> None:
    assert error_text(TimeoutError(), "http://h") == "TimeoutError"
    assert error_text(ValueError("a\nb"), "http://h") == "a"


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (
            "NewConnectionError(\"HTTPConnection(host='h', port=1): Failed to establish a new connection: "
            '[Errno 111] Connection refused"))',
            "[Errno 111] Connection refused",
        ),
        (
            "NameResolutionError(\"HTTPConnection(host='h', port=1): Failed to resolve 'h' "
            '([Errno -2] Name or service not known)"))',
            "[Errno -2] Name or service not known",
        ),
        (
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
            "self-signed certificate (_ssl.c:1006)')))",
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)",
        ),
        ("ResponseError('too many 503 error responses'))", "ResponseError('too many 503 error responses')"),
    ],
)
def test_of_a_failed_request_the_reason_is_told(cause: str, reason: str) -> None:
    begin = (
        "API request to http://h:1/x failed with exception HTTPConnectionPool(host='h', port=1): Max retries"
    )
    assert error_text(OSError(f"{begin} exceeded with url: /x (Caused by {cause}"), "http://h:1") == reason
