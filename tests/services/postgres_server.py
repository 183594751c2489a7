"""A PostgreSQL server of the tests' own: its folder, its user, its socket; none of the machine's is touched."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN_VARIABLE = "CONVMLP_POSTGRES_BIN"
_PROGRAMS = ("initdb", "postgres", "createdb", "pg_dump", "pg_restore")
_STARTED_WITHIN_S = 60.0


@dataclass(frozen=True)
class Postgres:
    """A running server, reached by a socket in `folder`. `user` is its superuser."""

    folder: Path
    programs: Path
    user: str
    password: str

    def uri(self, database: str, password: str | None = None) -> str:
        """For MLflow."""
        login = f"{self.user}:{password or self.password}"
        return f"postgresql+psycopg://{login}@/{database}?host={self.folder}"

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs against it; what it printed."""
        command = [str(self.programs / program), "-h", str(self.folder), "-U", self.user, *arguments]
        environment = os.environ | {"PGPASSWORD": self.password}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: `BIN_VARIABLE`, else Debian's newest, else that of `initdb` in the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: float(one.parent.name))
    found = shutil.which("initdb")
    named = os.environ.get(BIN_VARIABLE)
    places = [Path(named)] if named else [*reversed(debian), *([Path(found).parent] if found else [])]
    return next((place for place in places if all((place / one).exists() for one in _PROGRAMS)), None)


def needs_postgres() -> Path:
    """Skips the test where there is none, and says how to get it."""
    found = programs()
    if found is None:
        pytest.skip(
            "PostgreSQL isn't installed: sudo apt-get install -y postgresql (Debian, Ubuntu), or "
            f"{BIN_VARIABLE}=the folder of its {', '.join(_PROGRAMS)}"
        )
    return found


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server with an empty database `mlflow`. It refuses to run as root: there it runs as postgres or nobody."""
    found = needs_postgres()
    # Not below pytest's folder, which other users can't enter; and a socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="convmlp-pg-"))
    owner = _owner()
    as_owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    server = Postgres(folder, found, "mlflow", secrets.token_hex(16))
    process = None
    try:
        word = folder / "password"
        word.write_text(server.password)
        if owner:
            os.chown(word, owner.pw_uid, owner.pw_gid)
        making = [found / "initdb", "-D", folder / "data", "-U", server.user, f"--pwfile={word}"]
        making += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        done = subprocess.run(making, cwd=folder, capture_output=True, text=True, **as_owner)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr
        word.unlink()
        # No TCP: its port is only the name of its socket.
        command = [found / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses="]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **as_owner)  # type: ignore[call-overload]
        _await(server, process)
        server.run("createdb", "mlflow")
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _owner() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody")


def _await(server: Postgres, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTED_WITHIN_S
    asking = [str(server.programs / "pg_isready"), "-q", "-h", str(server.folder)]
    while subprocess.run(asking).returncode != 0:
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"PostgreSQL didn't start: {(server.folder / 'log').read_text()}")
        time.sleep(0.05)
