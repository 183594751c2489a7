"""The state of a run's delivery to MLflow, in `RUN_DIR/tracking/`.

journal.jsonl   all records (see `journal`)                       written by the training process
target.json     which server, experiment and run name             written by the training process
feed.json       the run's id and how far the journal was sent     written by the one holding feed.lock
feed.lock       the process that sends, see `data_prep.storage.locks`
"""

from __future__ import annotations

import json
import os
import re
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.journal import Status
from data_prep.storage.files import write_atomically
from data_prep.storage.json_files import Count, DamagedJson, read_json
from data_prep.storage.locks import Lock

SQLITE = "sqlite:///"
"""How addresses of SQLite stores begin; their path follows."""
# A login that holds a slash is taken for one where what stands behind the colon can't be a port.
_LOGIN = re.compile(r"(\w[\w+.-]*://)([^/?#]*@|[^/?#@]+:(?!\d*(?:[/?#]|$))[^@]*@)?(.*)", re.DOTALL)
_SECRET_OPTION = re.compile(r"(user|\w*pass(word|wd)?|pwd|\w*token|\w*secret)=", re.IGNORECASE)


def tracking_folder(run_dir: Path) -> Path:
    """Returns the folder of a run's tracking files."""
    return run_dir / "tracking"


def journal_path(run_dir: Path) -> Path:
    """The run's journal."""
    return tracking_folder(run_dir) / "journal.jsonl"


class Target(BaseModel):
    """The destination of a run's records. `uri` is without user and password: no secret is stored."""

    model_config = ConfigDict(frozen=True)

    uri: str
    experiment: str
    run_name: str
    journal_id: str = Field(default_factory=lambda: uuid.uuid4().hex, description="finds the run again")
    folder: str = Field("", description="of the run when this was written; empty: not known")

    @property
    def address(self) -> str:
        """Server and experiment: what a run id belongs to. A store above the run's folder counts by the way to it,
        which stays when both are moved."""
        way = self.way(Path(self.folder)) if self.folder else None
        return f"{SQLITE}{way} {self.experiment}" if way else f"{self.uri} {self.experiment}"

    def way(self, folder: Path | None) -> str | None:
        """The relative path from a run's folder to its SQLite store; None where that isn't in a folder above."""
        if folder is None or not self.uri.startswith(SQLITE):
            return None
        path = Path(self.uri.removeprefix(SQLITE))
        return os.path.relpath(path, folder) if path.parent in folder.parents else None

    def owns(self, state: FeedState) -> bool:
        """Whether what was sent was sent here. Earlier releases wrote the store's absolute path."""
        return state.address in (self.address, f"{self.uri} {self.experiment}")


class FeedState(BaseModel):
    """How far the journal has been sent, in bytes, and to which run."""

    model_config = ConfigDict(frozen=True)

    address: str = ""
    run_id: str | None = None
    values: Count = Field(0, description="offset behind the last metric, param, tag, dataset, status sent")
    artifacts: Count = Field(0, description="offset behind the last artifact sent")
    end: Status | None = Field(None, description="the run's end, which is sent when nothing else is left")

    def has_all(self, size: int) -> bool:
        """Whether a journal of `size` bytes was sent."""
        return min(self.values, self.artifacts) >= size and self.end is None


def without_secrets(uri: str) -> str:
    """`uri` without its user and password, which drivers of databases take in the query, too."""
    scheme, login, rest = split_login(uri)
    place, mark, query = rest.partition("?")
    kept = "&".join(one for one in query.split("&") if not _SECRET_OPTION.match(one))
    return scheme + (place + mark + kept if kept else place) if login or kept != query else uri


def split_login(uri: str) -> tuple[str, str, str]:
    """A URI's `SCHEME://`, `USER:PASSWORD@` and the rest, which of a password that should have been quoted is right,
    too."""
    found = _LOGIN.match(uri)
    return (found[1], found[2] or "", found[3]) if found else ("", "", uri)


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


def feed_lock(run_dir: Path, *, helper: bool = False) -> Lock:
    """The lock that one process at a time must hold to send this run's journal; `helper` as in
    `data_prep.storage.locks`."""
    return Lock(tracking_folder(run_dir) / "feed.lock", helper=helper)
