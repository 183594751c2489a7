"""Feeds MLflow from a run's journal, in its own process (`python -m` this module, with RUN_DIR).

A process, not a thread: importing MLflow takes seconds of the interpreter's lock (a thread would stall the
first steps), and data-loader workers forked while a thread is importing inherit locks that nobody ever
releases. It lives as long as its parent (see `feeder`), tries again with growing pauses as long as the
server is away, and may be killed at any time: what it sent last is sent again, which MLflow takes as the
same.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convmlp_platform.errors import PlatformError, TrackingError
from convmlp_platform.tracking.delivery_state import (
    FeedState,
    feed_lock,
    journal_path,
    load_feed,
    load_target,
    save_feed,
    tracking_folder,
    without_secrets,
)
from convmlp_platform.tracking.journal import Artifact, Status, now_ms, read_chunk
from convmlp_platform.tracking.mlflow.delivery import (
    Delivery,
    RunLost,
    find_or_create_run,
    in_batches,
    run_exists,
)
from convmlp_platform.tracking.mlflow.feeder import PipeLifeline
from convmlp_platform.tracking.mlflow.server import error_text
from convmlp_platform.tracking.mlflow.tracking_uri import URI_VARIABLE
from convmlp_platform.tracking.moved_store import address_of, followed
from data_prep.storage.lock_holder import Holder
from data_prep.storage.locks import Held, Lock, holding

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
        if not self.target.owns(self.state):  # the job was pointed elsewhere: all goes there
            self.state = FeedState(address=self.target.address)

    @property
    def pending_bytes(self) -> int:
        """Bytes of the journal that were not sent yet."""
        path = journal_path(self.run_dir)
        size = path.stat().st_size if path.exists() else 0
        end = 0 if self.state.end is None else len(self.state.end.model_dump_json()) + 1
        return max(0, size - min(self.state.values, self.state.artifacts)) or end

    def advance(self) -> bool:
        """Send the next stretch of values and the next artifact; whether anything is left. The run's end goes last.

        Raises whatever MLflow and the artifact store raise; nothing is lost, call again.
        """
        try:
            delivery = self._connect()
            if self._advance_values(delivery) | self._advance_artifacts(delivery):
                return True
            if self.state.end is not None:
                delivery.send_end(self.state.end)
                self._remember(self.state.model_copy(update={"end": None}))
            return False
        except RunLost:
            logger.warning("MLflow has lost run %s: its whole journal goes to a new run", self.state.run_id)
            self._delivery = None
            self._remember(FeedState(address=self.target.address))
            return True

    def _connect(self) -> Delivery:
        if self._delivery is not None:
            return self._delivery
        from convmlp_platform.tracking.mlflow.client import open_client

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
        self._delivery = Delivery(self._client, run_id, self.uri, self.target.journal_id)
        return self._delivery

    def _advance_values(self, delivery: Delivery) -> bool:
        path = journal_path(self.run_dir)
        chunk = read_chunk(path, self.state.values)
        if chunk.end == self.state.values:
            return False
        # What is sent must be durable here, or a machine's crash makes the journal shorter than the offset.
        with path.open("rb") as file:
            os.fsync(file.fileno())
        for records, end in in_batches(chunk):
            delivery.send_values(records)
            known: dict[str, object] = {"values": end}
            for record in records:
                if isinstance(record, Status):
                    known |= {"end": record if record.is_end else None}
            self._remember(self.state.model_copy(update=known))
        return True

    def _advance_artifacts(self, delivery: Delivery) -> bool:
        """Artifacts have an offset of their own: trouble with their store doesn't hold up the metrics."""
        chunk = read_chunk(journal_path(self.run_dir), self.state.artifacts)
        offset = chunk.end
        for record, end in zip(chunk.records, chunk.ends, strict=True):
            if isinstance(record, Artifact):
                source = str(followed(record.source, self.run_dir))
                delivery.send_artifact(record.model_copy(update={"source": source}))
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
    closing = _Closing(lifeline)
    while True:
        lock = feed_lock(run_dir, helper=True)
        if not _taken(lock, closing):
            return Replayer(run_dir, uri).pending_bytes
        try:
            left = _feed(Replayer(run_dir, uri), closing, lock)
        finally:
            lock.release()
        if left is not None:
            return left


class _Closing:
    """The lifeline, and the times that its end sets."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline
        self.deadline = self.give_up = math.inf

    @property
    def has_begun(self) -> bool:
        return self.deadline < math.inf

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for the lifeline's end."""
        left = self._lifeline.wait(seconds)
        if left is not None:
            now = time.monotonic()
            self.deadline, self.give_up = now + left, now + min(left, GIVE_UP_SECONDS)


def _taken(lock: Lock, closing: _Closing) -> bool:
    """Take the lock as soon as the replayer of a killed attempt has ended; False where time ends before."""
    failed = False
    while time.monotonic() < closing.deadline:
        try:
            if lock.try_take():
                return True
        except OSError as error:  # a full disk may have room again
            if not failed:
                logger.warning("%s can't be written: %s", lock.path, error.strerror)
            failed = True
        if closing.has_begun:
            time.sleep(POLL_SECONDS / 2)
        else:
            closing.wait(POLL_SECONDS)
    return False


def _feed(replayer: Replayer, closing: _Closing, lock: Lock) -> int | None:
    """Send all there is and will be; bytes left unsent, None where another process has taken the lock over."""
    pause, failures, shown = POLL_SECONDS, 0, without_secrets(replayer.uri)
    while not lock.lost.is_set():
        try:
            more = replayer.advance()
            if failures:
                logger.warning("MLflow at %s is back after %d attempts", shown, failures)
            pause, failures = POLL_SECONDS, 0
        except Exception as error:
            more, failures = True, failures + 1
            if failures == 1:
                full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                logger.warning(
                    "%s (%s): the run goes on, its records wait in the journal",
                    f"{replayer.run_dir} can't be written"
                    if full
                    else f"MLflow at {shown} takes nothing now",
                    error_text(error, replayer.uri),
                )
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        if not closing.has_begun:
            closing.wait(0 if more and not failures else pause)
        elif not more:
            return 0
        elif time.monotonic() >= (closing.give_up if failures else closing.deadline):
            return replayer.pending_bytes
        elif failures:
            time.sleep(POLL_SECONDS / 2)
    return None


def replay(run_dir: Path) -> str:
    """Send what is left of a run's journal to MLflow (`convmlp replay-tracking RUN_DIR`); the run's id.

    The server is the one the run was started with, unless MLFLOW_TRACKING_URI names it (with its password).

    Raises:
        TrackingError: no tracked run in `run_dir`, another process is sending it, or MLflow can't take it.
    """
    uri = os.environ.get(URI_VARIABLE) or address_of(run_dir)
    with ExitStack() as stack:
        try:
            stack.enter_context(holding(feed_lock(run_dir).path))
        except Held as held:
            raise TrackingError(
                f"{run_dir}: its journal is being sent by {held}{_whose(held.holder)}"
            ) from None
        except OSError as error:
            raise TrackingError(f"{tracking_folder(run_dir)} can't be written: {error.strerror}") from None
        replayer = Replayer(run_dir, uri)
        try:
            while replayer.advance():
                pass
        except PlatformError:
            raise
        except Exception as error:
            left = f"{replayer.pending_bytes:,} bytes of {journal_path(run_dir)} are unsent"
            raise TrackingError(
                f"MLflow at {without_secrets(uri)} doesn't take the run: {error_text(error, uri)} ({left})"
            ) from None
    assert replayer.state.run_id is not None
    return replayer.state.run_id


def _whose(holder: Holder | None) -> str:
    if holder is not None and holder.is_orphan:
        return ", whose run has ended: it sends what is left and ends within a minute"
    return ": the run is alive" if holder is not None and holder.parent is not None else ""


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
    return 0 if run_replayer(run_dir, uri, lifeline) == 0 else 3


if __name__ == "__main__":
    sys.exit(main())
