"""A training run under way on the tests' cluster: its driver's process, its events, its training processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray_site import REPOSITORY, Site

Event = dict[str, Any]
TIMEOUT_S = 150.0


class RayRun:
    """`convmlp run JOB` in the background. Output is collected in `lines`."""

    def __init__(self, site: Site, name: str, *settings: str) -> None:
        self.folder = site.root / "runs" / name
        given = ["tracking.register_as=null", f"name={name}", *settings]
        options = [word for setting in given for word in ("--set", setting)]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "convmlp_platform", "run", "jobs/pretrain_digits.yaml", *options],
            env=site.cluster.env, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def events(self, kind: str) -> list[Event]:
        path: Path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for line in lines if (event := json.loads(line))["kind"] == kind]

    def pids(self) -> dict[int, int]:
        """Rank → process id, of the newest attempt."""
        return {int(rank): pid for rank, pid in self.events("attempt_started")[-1]["pids"].items()}

    def wait(self, happened: Callable[[], object]) -> None:
        """Until `happened`; fails where the driver ends or time does before."""
        deadline = time.monotonic() + TIMEOUT_S
        while not happened():
            ended = self.process.poll()
            assert ended is None or happened(), f"the driver ended with {ended}:\n{self.output}"
            assert time.monotonic() < deadline, f"waited too long:\n{self.output}"
            time.sleep(0.02)

    def wait_running(self, attempts: int = 1) -> None:
        """Until so many attempts, in all, have made a step; and a checkpoint is there to go on from."""
        self.wait(lambda: len(self.events("attempt_running")) >= attempts)
        self.wait((self.folder / "checkpoints" / "latest").exists)

    def end(self) -> int:
        """Wait for the driver's end; its exit code."""
        code = self.process.wait(timeout=TIMEOUT_S)
        self._reader.join(timeout=10)
        return code


@contextmanager
def ray_run(site: Site, name: str, *settings: str) -> Iterator[RayRun]:
    """The driver doesn't outlive the block."""
    run = RayRun(site, name, *settings)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()


def wait_gone(pids: list[int], timeout: float = 15.0) -> None:
    """Until none of these processes is left."""
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout)
    assert not left
