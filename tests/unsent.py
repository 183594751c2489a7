"""Runs whose metrics stay in the journal: sending them to MLflow takes a process of its own, 7 s of a core a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from convmlp_platform.tracking.feeder import Feeder


@contextmanager
def without_replayer() -> Iterator[None]:
    """Within: as when the process that sends them can't be started."""
    with mock.patch.object(Feeder, "_start", side_effect=OSError("none in this test")):
        yield
