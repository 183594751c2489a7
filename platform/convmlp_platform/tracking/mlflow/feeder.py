"""The training process's hold on its replayer process: started, restarted, ended in bounded time."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from convmlp_platform.tracking.mlflow.tracking_uri import URI_VARIABLE

logger = logging.getLogger(__name__)

RESTART_SECONDS = 30.0
ORPHAN_FLUSH_SECONDS = 20.0
_GRACE_SECONDS = 2.0


class Feeder:
    """Owns one replayer process. No method raises: telemetry must not hurt."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self._run_dir = run_dir
        self._uri = uri
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -RESTART_SECONDS

    def ensure_alive(self) -> None:
        """Start the process where there is none; one that dies again and again is started twice a minute."""
        if self._process is not None and self._process.poll() is None:
            return
        if time.monotonic() - self._started < RESTART_SECONDS:
            return
        self._started = time.monotonic()
        try:
            self._process = self._start()
        except OSError as error:
            logger.warning("tracking: the replayer can't be started (%s); records wait in the journal", error)

    def close(self, timeout: float) -> bool:
        """Let it flush for up to `timeout` seconds and end; whether everything was sent."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return False
        try:
            process.stdin.write(f"{timeout}\n".encode())
            process.stdin.close()
        except OSError:
            pass  # it is dead already
        try:
            return process.wait(timeout + _GRACE_SECONDS) == 0
        except subprocess.TimeoutExpired:
            process.kill()  # it hangs in a request; what it would have sent is in the journal
            process.wait()
            return False

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(__file__).resolve().parents[3])
        search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        # It must see no GPU, and none of its parent's ranks and ports.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MASTER_"))}
        environment |= {URI_VARIABLE: self._uri, "PYTHONPATH": search_path, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "convmlp_platform.tracking.mlflow.replayer", str(self._run_dir)]
        # A session of its own: Ctrl-C and signals to the job's group must not cut off the last metrics.
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


class PipeLifeline:
    """The replayer's view of its parent: a line "SECONDS" on the pipe, or the parent's death.

    The parent's id is watched as well as the pipe, because forked data-loader workers hold the pipe open too.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._parent = os.getppid()

    def wait(self, seconds: float) -> float | None:
        """See `replayer.Lifeline`."""
        readable, _, _ = select.select([self._descriptor], [], [], min(seconds, 5.0))
        if readable:
            line = os.read(self._descriptor, 64).strip()
            return float(line) if line else ORPHAN_FLUSH_SECONDS
        return None if os.getppid() == self._parent else ORPHAN_FLUSH_SECONDS
