"""What is remembered of a run's way into MLflow, in `RUN_DIR/tracking/`.

journal.jsonl   all records (see `journal`)                       written by the training process
target.json     which server, experiment and run name             written by the training process
feed.json       the run's id and how far the journal was sent     written by the one holding feed.lock
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field

from convmlp_platform.errors import TrackingError
from data_prep.files import write_atomically
from data_prep.json_files import Count, DamagedJson, read_json


def tracking_folder(run_dir: Path) -> Path:
    """Where a run keeps its tracking files."""
    return run_dir / "tracking"


def journal_path(run_dir: Path) -> Path:
    """The run's journal."""
    return tracking_folder(run_dir) / "journal.jsonl"


class Target(BaseModel):
    """Where a run's records are to go. `uri` is without user and password: no secret is stored."""

    model_config = ConfigDict(frozen=True)

    uri: str
    experiment: str
    run_name: str
    journal_id: str = Field(default_factory=lambda: uuid.uuid4().hex, description="finds the run again")

    @property
    def address(self) -> str:
        """Server and experiment: what a run id belongs to."""
        return f"{self.uri} {self.experiment}"


class FeedState(BaseModel):
    """How far the journal has been sent, in bytes, and to which run."""

    model_config = ConfigDict(frozen=True)

    address: str = ""
    run_id: str | None = None
    values: Count = Field(0, description="offset behind the last metric, param, tag, dataset, status sent")
    artifacts: Count = Field(0, description="offset behind the last artifact sent")


def without_secrets(uri: str) -> str:
    """`uri` without its user and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def load_target(run_dir: Path) -> Target:
    """Raises TrackingError where `run_dir` holds no run that was tracked."""
    path = tracking_folder(run_dir) / "target.json"
    try:
        return read_json(path, Target)
    except FileNotFoundError:
        raise TrackingError(f"{run_dir}: no tracked run is here (no {path})") from None
    except (OSError, DamagedJson) as error:
        raise TrackingError(
            f"{path}: can't be read: {error}; starting the run again writes it anew"
        ) from error


def save_target(run_dir: Path, target: Target) -> None:
    """Write `target.json`."""
    _save(tracking_folder(run_dir) / "target.json", target)


def load_feed(run_dir: Path) -> FeedState:
    """The state, or a fresh one: sending again does no harm, so a damaged file is as good as none, and so is one whose
    places are none of this journal's."""
    try:
        state = read_json(tracking_folder(run_dir) / "feed.json", FeedState)
    except (OSError, DamagedJson):
        return FeedState()
    known = all(_is_after_a_line(journal_path(run_dir), place) for place in (state.values, state.artifacts))
    return state if known else FeedState()


def _is_after_a_line(journal: Path, place: int) -> bool:
    try:
        with journal.open("rb") as file:
            file.seek(max(0, place - 1))
            return place == 0 or file.read(1) == b"\n"
    except OSError:
        return place == 0


def save_feed(run_dir: Path, state: FeedState) -> None:
    """Write `feed.json`."""
    _save(tracking_folder(run_dir) / "feed.json", state)


def _save(path: Path, model: BaseModel) -> None:
    write_atomically(path, json.dumps(model.model_dump(), indent=1).encode() + b"\n")


@contextmanager
def exclusive_feed(run_dir: Path) -> Iterator[bool]:
    """Yield whether this process is now the only one that sends this run's journal."""
    descriptor = os.open(tracking_folder(run_dir) / "feed.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)
