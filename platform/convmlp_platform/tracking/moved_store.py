"""A SQLite store of MLflow, its artifacts and its runs, which move together: a root may be moved or copied.

MLflow keeps the absolute address of every artifact in its tables. A store that was moved or copied would go on to read
and write the place that it came from. The rule here: a store's artifacts lie in the folder that its file lies in. The
store knows the folder that its addresses lead to (table `convmlp_store`); where it is opened in another one, they are
made to lead there, in one transaction, with a copy of the file as it was beside it. That is the same for a store that
was moved and for one that was copied, and nothing is written to the place before (docs/decisions/0016).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from convmlp_platform.errors import TrackingError
from convmlp_platform.tracking.delivery_state import SQLITE, Target, journal_path, load_target
from convmlp_platform.tracking.journal import Artifact, CheckpointCommitted, read_chunk
from data_prep.storage.files import sync_folder

logger = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
"""The folder of artifacts beside the store's file."""
BEFORE = ".before-move"
"""Added to the name of the store's file, it is that of the copy of it as it was."""
_WAIT_S = 60.0
_MARK = "convmlp_store"
_LOCATIONS = ("experiments", "artifact_location")
# MLflow's columns with addresses of artifacts. What is uploaded lies in folders that the first three name.
_FOLDERS = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
_ADDRESSES = (_LOCATIONS, *_FOLDERS, ("model_versions", "source"))
# Our own tags that say where something is now, as (table, column of the name, column of the value, name). What a run
# was told (its parameters, its datasets' sources, its lineage) is history and stays.
_TAGS = (
    ("logged_model_tags", "tag_key", "tag_value", "location"),
    ("model_version_tags", "key", "value", "checkpoints"),
    ("tags", "key", "value", "checkpoint.latest"),
)


def follow(path: Path) -> None:
    """Make the addresses in the store at `path` lead to the folder that it lies in.

    Raises:
        TrackingError: as `obstacle` says; nothing was changed.
    """
    if is_read_only(path):
        if (reason := obstacle(path)) is not None:
            raise TrackingError(reason)
        return
    here = path.parent
    with closing(_opened(path)) as store:
        if _is_at_home(store, here):
            return
        # Two may come here at once: the second waits, and finds it done.
        store.execute("BEGIN IMMEDIATE")
        if _is_at_home(store, here):
            return
        former = _former(store, path)
        if (reason := _left_behind(store, path, former)) is not None:
            raise TrackingError(reason)
        if former:
            _keep_copy(path)
        changed = _rewrite(store, here, former)
        store.execute(f"CREATE TABLE IF NOT EXISTS {_MARK} (folder TEXT NOT NULL)")
        store.execute(f"DELETE FROM {_MARK}")
        store.execute(f"INSERT INTO {_MARK} VALUES (?)", (str(here),))
        store.execute("COMMIT")
    if changed and not _is_same_place(former[0], here):
        copied = (former[0] / path.name).exists()
        logger.warning(
            "MLflow's store %s was %s from %s: %d addresses in it lead here now; the file as it was: %s",
            path,
            "copied" if copied else "moved",
            former[0],
            changed,
            path.name + BEFORE,
        )


def obstacle(path: Path) -> str | None:
    """Returns the reason why a store that was moved or copied can't be used here: its artifacts were left behind, or it
    can't be written. None for any other, and where there is no such file."""
    if not path.is_file():
        return None
    with closing(_opened(path)) as store:
        if _is_at_home(store, path.parent):
            return None
        former = _former(store, path)
        if former and is_read_only(path):
            return (
                f"MLflow's store {path} was made in {former[0]}, where its addresses still lead, and can't be written "
                f"here: make {path.parent} writable for its first use, or copy it to a folder that is"
            )
        return _left_behind(store, path, former)


def is_read_only(path: Path) -> bool:
    """Whether the store is there and can only be read."""
    return path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def artifact_folder(path: Path) -> Path:
    """The folder for artifacts of new experiments in the store at `path`, by the name that the store has for it.

    A folder may have two names, by a link: all addresses of a store begin with the same one.
    """
    if path.is_file():
        with closing(_opened(path)) as store:
            made_in = _made_in(store)
        if made_in is not None and _is_same_place(made_in, path.parent):
            return made_in / ARTIFACTS
    return path.parent / ARTIFACTS


def address_of(run_dir: Path, target: Target | None = None) -> str:
    """The store or server that has a run, by its target (default: read it). A store that lay above the run's folder
    and was moved or copied with it is the one that lies there now.

    Raises:
        TrackingError: no run is in `run_dir`, or it was moved without its store, which is still where it was.
    """
    target = target or load_target(run_dir)
    home = Path(target.folder) if target.folder else _former_home(run_dir, target)
    way = target.way(home)
    if home is None or way is None or _is_same_place(home, run_dir):
        return target.uri
    before = Path(target.uri.removeprefix(SQLITE))
    here = Path(os.path.normpath(run_dir.absolute() / way))
    if not here.exists() and before.parent in run_dir.absolute().parents:
        return target.uri
    if not here.exists() and before.exists():
        raise TrackingError(
            f"{run_dir} came from {home} without its MLflow store: there is none at {here}, and {before} belongs to "
            f"the run that is there. Copy the store and its {ARTIFACTS}, too, or say with MLFLOW_TRACKING_URI where to"
        )
    return f"{SQLITE}{here}"


def followed(place: str, run_dir: Path) -> Path:
    """A path that was written down for the run in `run_dir`, wherever that lay: the file or folder in it now.

    Args:
        place: relative to the run's folder, or absolute. One of another folder stays as it is.
    """
    run_dir = run_dir.absolute()
    path = run_dir / place
    tail = _tail(path, run_dir)
    return path if tail is None else run_dir / tail


def _tail(path: Path, run_dir: Path) -> Path | None:
    """The part of a path that is behind the name of the run's folder, where it isn't below that folder as it is now."""
    name = run_dir.name
    if path.is_relative_to(run_dir) or name not in path.parts[:-1]:
        return None
    last = len(path.parts) - 2 - path.parts[-2::-1].index(name)
    return Path(*path.parts[last + 1 :])


def _former_home(run_dir: Path, target: Target) -> Path | None:
    """The folder of a run whose target doesn't say so, by the paths in its journal. None: it is where it was."""
    run_dir = run_dir.absolute()
    if target.way(run_dir) is not None or target.way(run_dir.resolve()) is not None:
        return None
    for record in read_chunk(journal_path(run_dir), max_bytes=1 << 30).records:
        place = {Artifact: "source", CheckpointCommitted: "location"}.get(type(record))
        path = Path(getattr(record, place)) if place else Path()
        if path.is_absolute() and (tail := _tail(path, run_dir)) is not None:
            return path.parents[len(tail.parts) - 1]
    return None


def _opened(path: Path) -> sqlite3.Connection:
    """For writing where that is allowed: what a killed writer left half done is taken back by whoever opens it next.

    Transactions are begun and ended by statements.
    """
    mode = "ro" if is_read_only(path) else "rw"
    address = f"file:{quote(str(path))}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=_WAIT_S, isolation_level=None)


def _is_at_home(store: sqlite3.Connection, here: Path) -> bool:
    made_in = _made_in(store)
    return made_in is not None and _is_same_place(made_in, here)


def _made_in(store: sqlite3.Connection) -> Path | None:
    """The folder that the store's addresses lead to; None where it was made before it knew."""
    if not _has(store, _MARK, "folder"):
        return None
    row = store.execute(f"SELECT folder FROM {_MARK}").fetchone()
    return None if row is None else Path(row[0])


def _former(store: sqlite3.Connection, path: Path) -> list[Path]:
    """The folders that addresses in the store lead to and that it isn't in, by name; the one it was made in first.

    A store of an earlier release doesn't say where it was made: a folder with artifacts is taken for it by evidence.
    Artifacts that somebody wants elsewhere stay there.
    """
    here, made_in = path.parent, _made_in(store)
    named = [] if made_in is None else [made_in]
    for value in _values(store, *_LOCATIONS):
        place = _local(value)
        if place is not None and place.name == ARTIFACTS and place.parent not in named:
            named.append(place.parent)
    return [one for one in named if one != here and (one == made_in or _was_home(store, one, path))]


def _was_home(store: sqlite3.Connection, folder: Path, path: Path) -> bool:
    here = path.parent
    if _is_same_place(folder, here) or not folder.exists() or (folder / path.name).is_file():
        return True
    return any((here / relative).exists() for relative in _uploaded(store, folder))


def _left_behind(store: sqlite3.Connection, path: Path, former: list[Path]) -> str | None:
    """Returns the refusal of a store whose artifacts are where it was and not where it is."""
    here = path.parent
    for folder in former:
        left = sorted(
            relative
            for relative in set(_uploaded(store, folder))
            if not (here / relative).exists() and (folder / relative).exists()
        )
        if left:
            return (
                f"MLflow's store {path} was made in {folder}, and came without {len(left)} folders of its artifacts, "
                f"which are still there ({left[0]}, ...). Nothing was changed. Copy them, too: "
                f"cp -rn '{folder / ARTIFACTS}' '{here}'; or use the store where it was: CONVMLP_ROOT='{folder}'"
            )
    return None


def _uploaded(store: sqlite3.Connection, folder: Path) -> Iterator[Path]:
    """The folders of artifacts below `folder` that the store names, relative to it."""
    for table, column in _FOLDERS:
        for value in _values(store, table, column):
            place = _local(value)
            if place is not None and place.is_relative_to(folder):
                yield place.relative_to(folder)


def _keep_copy(path: Path) -> None:
    """Beside the store, as it is now. Others can't write to it: the caller is amid a transaction."""
    kept = path.with_name(path.name + BEFORE)
    writing = kept.with_name(f".{kept.name}.writing")
    writing.unlink(missing_ok=True)
    with closing(_opened(path)) as store, closing(sqlite3.connect(writing)) as copy:
        store.backup(copy)
    writing.replace(kept)
    sync_folder(kept.parent)


def _rewrite(store: sqlite3.Connection, here: Path, former: Collection[Path]) -> int:
    """Make all addresses lead to `here`; how many were changed."""
    homes = sorted({here, *former}, key=lambda folder: len(folder.parts), reverse=True)

    def address(value: str | None) -> str | None:
        place = None if value is None else _local(value)
        home = next((one for one in homes if place is not None and place.is_relative_to(one)), here)
        if value is None or place is None or home == here:
            return value
        moved = here / place.relative_to(home)
        return moved.as_uri() if value.startswith("file:") else str(moved)

    store.create_function("address", 1, address, deterministic=True)
    changed = 0
    for table, column in _ADDRESSES:
        if _has(store, table, column):
            changed += store.execute(
                f"UPDATE {table} SET {column} = address({column}) WHERE {column} <> address({column})"
            ).rowcount
    for table, key, value, name in _TAGS:
        if _has(store, table, value):
            changed += store.execute(
                f"UPDATE {table} SET {value} = address({value}) WHERE {key} = ? AND {value} <> address({value})",
                (name,),
            ).rowcount
    return changed


def _values(store: sqlite3.Connection, table: str, column: str) -> list[str]:
    if not _has(store, table, column):
        return []
    found = store.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL")
    return [str(value) for (value,) in found]


def _has(store: sqlite3.Connection, table: str, column: str) -> bool:
    """MLflow's tables differ by release."""
    return any(row[1] == column for row in store.execute(f"PRAGMA table_info({table})"))


def _local(address: str) -> Path | None:
    """The path of an address on this machine, as MLflow writes it; None for any other."""
    if address.startswith("/"):
        return Path(address)
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" and not parts.netloc else None


def _is_same_place(one: Path, other: Path) -> bool:
    """By name, or because a link leads from one to the other."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False
