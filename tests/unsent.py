"""Runs whose metrics stay in the journal, or are sent by this process: one of its own for that takes 7 s of a core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from convmlp_platform.tracking.mlflow.feeder import Feeder
from convmlp_platform.tracking.mlflow.replayer import run_replayer


@contextmanager
def without_replayer() -> Iterator[None]:
    """Within: as when the process that sends them can't be started."""
    with mock.patch.object(Feeder, "_start", side_effect=OSError("none in this test")):
        yield


class _Closing:
    """To a replayer: its parent wants all to be sent within so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wait(self, seconds: float) -> float:
        return self._seconds


def _sent_here(feeder: Feeder, timeout: float) -> bool:
    return run_replayer(feeder._run_dir, feeder._uri, _Closing(timeout)) == 0


@contextmanager
def replayed_here() -> Iterator[None]:
    """Within: what the replayer's process does is done in this one, once its parent waits for it."""
    with mock.patch.multiple(Feeder, ensure_alive=lambda _feeder: None, close=_sent_here):
        yield
