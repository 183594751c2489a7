"""MLflow servers as an operator starts them, which tests kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import pytest
from private_authority import Authority

ADMIN, PASSWORD = "anna", "s3cret/of mine: 100%"
"""The log-in of a server with `auth`; its password is one that has to be quoted."""
BUCKET = "models"
"""For artifacts, on the S3 server of the tests."""
_STARTED_WITHIN_S = 180.0


class MlflowService:
    """`mlflow server` on a port of its own. Within `with` it runs; `kill` and `start` as often as one likes.

    Args:
        folder: for its log, and what it keeps itself.
        store: the address of its database.
        options: of the command.
        environment: besides this process's.
        authority: serve TLS by its certificate.
        auth: ask for a log-in: `ADMIN` with `PASSWORD`.
    """

    def __init__(
        self,
        folder: Path,
        store: str,
        options: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        authority: Authority | None = None,
        auth: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log, self.authority = folder, folder / "server.log", authority
        self.port = _free_port()
        self.uri = f"{'https' if authority else 'http'}://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        # In the environment, not in the command, which everybody can see: it holds the database's password.
        own = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", *options]
        if authority is not None:
            tls = f"--ssl-keyfile {authority.server_key} --ssl-certfile {authority.server_certificate}"
            command += ["--uvicorn-opts", tls]
        if auth:
            settings = folder / "auth.ini"
            settings.write_text(
                f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/auth.db\n"
                f"admin_username = {ADMIN}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
                "auth_cache_ttl_seconds = 60\n"  # else each request hashes the password anew
            )
            own |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(settings),
                "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the tests",
            }
            command += ["--app-name", "basic-auth"]
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("MLFLOW_") or name == "MLFLOW_S3_ENDPOINT_URL"
        }
        self._environment = kept | own | dict(environment or {})
        self._command = [sys.executable, "-m", "mlflow", *command]

    def __enter__(self) -> MlflowService:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and return when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self.folder, env=self._environment, start_new_session=True
            )  # fmt: skip
        until = time.monotonic() + _STARTED_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"mlflow server didn't start: {self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9, of all its processes."""
        if self._process is not None:
            os.killpg(
                self._process.pid, signal.SIGKILL
            )  # the group of its own session: uvicorn's workers too
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=self.authority.certificate) if self.authority else None
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5, context=context):
                return True
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
