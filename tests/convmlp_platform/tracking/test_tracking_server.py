"""The tracker against a server that is away, that hangs, and that comes back: real processes and sockets."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from unsent import replayed_here

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.tracking.delivery_state import load_feed
from convmlp_platform.tracking.mlflow.client import open_client
from convmlp_platform.tracking.mlflow.replayer import replay
from convmlp_platform.tracking.tracker import Tracker, flatten


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder),
    ]
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"
    }  # seven processes that nothing here uses
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
        )
        try:
            wait_for_health(process, port, folder / "server.log")
            yield
        finally:
            stop_group(process)


def wait_for_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.1)
    pytest.fail(f"mlflow server didn't start: {log.read_text()[-2000:]}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    import os
    import signal

    os.killpg(process.pid, signal.SIGKILL)  # the group of its own session: uvicorn's workers too
    process.wait()


def test_nothing_is_lost_or_doubled_by_a_server_that_comes_late(
    store: TrackingSection, run_dir: Path, tmp_path: Path
) -> None:
    shutil.copy((store.uri or "").removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    port = free_port()
    section = TrackingSection(uri=f"http://127.0.0.1:{port}", experiment="late", tags={"team": "vision"})
    tracker = Tracker.open(section, run_dir=run_dir, run_name="late")
    tracker.log_params({"optimizer": {"lr": 0.1}})
    (tmp_path / "curve.txt").write_text("curve")
    tracker.log_artifact(tmp_path / "curve.txt", "plots")
    for step in range(300):
        tracker.log_metrics({"loss": 1 / (step + 1), "nan": float("nan")}, step)
    assert load_feed(run_dir).run_id is None
    with mlflow_server(tmp_path, port):
        for step in range(300, 400):
            tracker.log_metrics({"loss": 1 / (step + 1), "nan": float("nan")}, step)
        assert tracker.finish("FINISHED")
        run_id = tracker.run_id
        assert run_id is not None
        client = open_client(section.uri or "")
        for key in ("loss", "nan"):
            assert [m.step for m in client.get_metric_history(run_id, key)] == list(range(400))
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED" and run.info.run_name == "late"
        assert run.data.tags["team"] == "vision" and "python.version" in run.data.tags
        assert [item.path for item in client.list_artifacts(run_id, "plots")] == ["plots/curve.txt"]
        assert replay(run_dir) == run_id


def test_a_server_that_never_answers_blocks_nothing(
    run_dir: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        section = TrackingSection(uri=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        tracker = Tracker.open(section, run_dir=run_dir, run_name="deaf")
        for step in range(1000):
            tracker.log_metrics({"loss": 1.0}, step)
        deaf.settimeout(60)
        connection, _ = deaf.accept()  # the replayer hangs on this one
        with connection:
            tracker.log_metrics({"loss": 1.0}, 1000)
            assert not tracker.finish("FAILED", timeout=0.5)
    assert f"convmlp replay-tracking {run_dir}" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    assert tracker.run_id is None


def refuse_lock(*_: object) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.slow
def test_a_restarted_run_goes_on_in_the_same_mlflow_run(
    store: TrackingSection, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on file systems without flock: NFS and Lustre answer so in every process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import fcntl, os\ndef refuse(*_):\n    raise OSError(38, os.strerror(38))\nfcntl.flock = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    ids = []
    for attempt in range(2):
        with replayed_here() if attempt == 0 else nullcontext():
            tracker = Tracker.open(store, run_dir=run_dir, run_name="again")
            tracker.log_metrics({"loss": 1.0}, attempt)
            assert tracker.finish("KILLED" if attempt == 0 else "FINISHED")
        ids.append(tracker.run_id)
    assert ids[0] is not None and ids[0] == ids[1]
    run = open_client(store.uri or "").get_run(ids[0])
    assert run.info.status == "FINISHED"


def test_flatten_gives_dotted_names_and_short_text() -> None:
    nested = {"optimizer": {"lr": 1e-3, "betas": (0.9, 0.99)}, "empty": {}, "long": "x" * 9000}
    flat = flatten(nested)
    assert flat["optimizer.lr"] == "0.001" and flat["optimizer.betas"] == "[0.9, 0.99]"
    assert flat["empty"] == "{}" and len(flat["long"]) == 6000
