"""Feeds MLflow from a run's journal, in its own process (`python -m` this module, with RUN_DIR).

A process, not a thread: importing MLflow takes seconds of the interpreter's lock (a thread would stall the
first steps), and data-loader workers forked while a thread is importing inherit locks that nobody ever
releases. It lives as long as its parent (see `feeder`), tries again with growing pauses as long as the
server is away, and may be killed at any time: what it sent last is sent again, which MLflow takes as the
same.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convmlp_platform.errors import PlatformError, TrackingError
from convmlp_platform.tracking.delivery import Delivery, RunLost, find_or_create_run, run_exists
from convmlp_platform.tracking.feeder import PipeLifeline
from convmlp_platform.tracking.journal import Artifact, now_ms, read_chunk
from convmlp_platform.tracking.state import (
    FeedState,
    exclusive_feed,
    journal_path,
    load_feed,
    load_target,
    save_feed,
    without_secrets,
)
from convmlp_platform.tracking.uri import URI_VARIABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
GIVE_UP_SECONDS = 10.0  # of flushing to a server that fails; one that is slow gets all the time there is


class Lifeline(Protocol):
    """Tells the replayer when its parent is done."""

    def wait(self, seconds: float) -> float | None:
        """Wait up to `seconds`; the seconds left to flush once the parent wants to end, None before."""
        ...


class Replayer:
    """Sends what the journal of `run_dir` holds beyond the remembered offsets. Only one may exist per run."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir = run_dir
        self.uri = uri
        self.target = load_target(run_dir)
        self.state = load_feed(run_dir)
        self._client: MlflowClient | None = None
        self._delivery: Delivery | None = None
        if self.state.address != self.target.address:  # the job was pointed elsewhere: all goes there
            self.state = FeedState(address=self.target.address)

    @property
    def pending_bytes(self) -> int:
        """Bytes of the journal that were not sent yet."""
        path = journal_path(self.run_dir)
        size = path.stat().st_size if path.exists() else 0
        return max(0, size - min(self.state.values, self.state.artifacts))

    def advance(self) -> bool:
        """Send the next stretch of values and the next artifact; whether anything is left.

        Raises whatever MLflow and the artifact store raise; nothing is lost, call again.
        """
        try:
            delivery = self._connect()
            return self._advance_values(delivery) | self._advance_artifacts(delivery)
        except RunLost:
            logger.warning("MLflow has lost run %s: its whole journal goes to a new run", self.state.run_id)
            self._delivery = None
            self._remember(FeedState(address=self.target.address))
            return True

    def _connect(self) -> Delivery:
        if self._delivery is not None:
            return self._delivery
        from convmlp_platform.tracking.store import open_client

        self._client = self._client or open_client(self.uri)
        run_id = self.state.run_id
        if run_id is None:
            first = read_chunk(journal_path(self.run_dir), max_bytes=1).records
            run_id = find_or_create_run(
                self._client, self.uri, self.target, first[0].time if first else now_ms()
            )
            self._remember(self.state.model_copy(update={"run_id": run_id}))
        elif not run_exists(self._client, run_id):
            raise RunLost(run_id)
        self._delivery = Delivery(self._client, run_id)
        return self._delivery

    def _advance_values(self, delivery: Delivery) -> bool:
        path = journal_path(self.run_dir)
        chunk = read_chunk(path, self.state.values)
        if chunk.end == self.state.values:
            return False
        # What is sent must be durable here, or a machine's crash makes the journal shorter than the offset.
        with path.open("rb") as file:
            os.fsync(file.fileno())
        delivery.send_values(chunk.records)
        self._remember(self.state.model_copy(update={"values": chunk.end}))
        return True

    def _advance_artifacts(self, delivery: Delivery) -> bool:
        """Artifacts have an offset of their own: trouble with their store doesn't hold up the metrics."""
        chunk = read_chunk(journal_path(self.run_dir), self.state.artifacts)
        offset = chunk.end
        for record, end in zip(chunk.records, chunk.ends, strict=True):
            if isinstance(record, Artifact):
                delivery.send_artifact(record)
                offset = end
                break
        if offset == self.state.artifacts:
            return False
        self._remember(self.state.model_copy(update={"artifacts": offset}))
        return True

    def _remember(self, state: FeedState) -> None:
        save_feed(self.run_dir, state)
        self.state = state


def run_replayer(run_dir: Path, uri: str, lifeline: Lifeline) -> int:
    """Feed until the lifeline ends and everything is sent or the time to flush is over; bytes left unsent."""
    with exclusive_feed(run_dir) as alone:
        if not alone:  # the replayer of a killed attempt is still flushing
            return -1
        replayer = Replayer(run_dir, uri)
        pause, failures = POLL_SECONDS, 0
        deadline = give_up = math.inf
        closing = False
        while True:
            try:
                more = replayer.advance()
                if failures:
                    logger.warning("MLflow at %s is back after %d attempts", without_secrets(uri), failures)
                pause, failures = POLL_SECONDS, 0
            except Exception as error:
                more, failures = True, failures + 1
                if failures == 1:
                    _warn_unreachable(uri, error)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            if not closing:
                left = lifeline.wait(0 if more and not failures else pause)
                if left is not None:
                    closing, now = True, time.monotonic()
                    deadline, give_up = now + left, now + min(left, GIVE_UP_SECONDS)
            elif not more:
                return 0
            elif time.monotonic() >= (give_up if failures else deadline):
                return replayer.pending_bytes
            elif failures:
                time.sleep(POLL_SECONDS / 2)


def _warn_unreachable(uri: str, error: Exception) -> None:
    reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    logger.warning(
        "MLflow at %s takes nothing now (%s): the run goes on, its records wait in the journal",
        without_secrets(uri),
        reason.replace(uri, without_secrets(uri)),
    )


def replay(run_dir: Path) -> str:
    """Send what is left of a run's journal to MLflow (`convmlp replay-tracking RUN_DIR`); the run's id.

    The server is the one the run was started with, unless MLFLOW_TRACKING_URI names it (with its password).

    Raises:
        TrackingError: no tracked run in `run_dir`, another process is sending it, or MLflow can't take it.
    """
    uri = os.environ.get(URI_VARIABLE) or load_target(run_dir).uri
    with exclusive_feed(run_dir) as alone:
        if not alone:
            raise TrackingError(f"{run_dir}: its journal is being sent by another process: the run is alive")
        replayer = Replayer(run_dir, uri)
        try:
            while replayer.advance():
                pass
        except PlatformError:
            raise
        except Exception as error:
            left = f"{replayer.pending_bytes:,} bytes of {journal_path(run_dir)} are unsent"
            raise TrackingError(
                f"MLflow at {without_secrets(uri)} doesn't take the run: {error} ({left})"
            ) from error
    assert replayer.state.run_id is not None
    return replayer.state.run_id


def main() -> int:
    """Entry of the process; the address is in MLFLOW_TRACKING_URI, as everybody can see arguments."""
    logging.basicConfig(level=logging.WARNING, format="tracking: %(message)s")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # One try a request: pauses between tries are ours, and a server that hangs costs no more than this.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.nice(5)
    lifeline = PipeLifeline(sys.stdin.fileno())
    run_dir, uri = Path(sys.argv[1]), os.environ[URI_VARIABLE]
    while (left := run_replayer(run_dir, uri, lifeline)) < 0:
        if lifeline.wait(POLL_SECONDS) is not None:
            return 3
    return 0 if left == 0 else 3


if __name__ == "__main__":
    sys.exit(main())
