"""Saving and finding a run's state. A step is committed or it does not exist."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convmlp_platform.checkpoints import layout
from convmlp_platform.checkpoints.layout import FileRecord, Part
from convmlp_platform.checkpoints.snapshot import Snapshots
from convmlp_platform.checkpoints.store import Chunks, Draft, open_store
from convmlp_platform.checkpoints.tensor_file import Slice, read_tensors
from convmlp_platform.errors import CheckpointError
from data_prep.errors import DataPrepError

logger = logging.getLogger(__name__)
_HASHING_THREADS = 4
_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.5  # seconds between asking for another writer's part


@dataclass(frozen=True)
class Checkpoint:
    """A run's whole state: groups of tensors by name (`model`, `optimizer`, `ema`), and `facts`, plain JSON values
    (step, samples seen, ...).

    Where a rank holds runs of the tensors' elements only, `slices` says which, by group and name.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    slices: Mapping[str, Mapping[str, Slice]] = field(default_factory=dict)


class Checkpointer:
    """The checkpoints of one run under `location` (a folder or URL).

    Saving: stage → every file durable and hashed → manifest → one rename → `latest` → retire old ones. The newest
    two that are whole are never retired. A crash at any instant leaves the newest committed step loadable.
    """

    def __init__(self, location: str | Path, keep: int = 3) -> None:
        if keep < 2:
            raise ValueError(f"keep (={keep}) must be at least 2")
        self.store, self.keep = open_store(location), keep
        self._whole: set[int] = set()
        """Steps that this process has written, or read and found intact."""

    def save(self, checkpoint: Checkpoint) -> str:
        """Commit a state now. See `AsyncCheckpointer` for saving while training goes on."""
        files = Snapshots(Part()).take(checkpoint.tensors, checkpoint.slices)
        return self.write(checkpoint.step, checkpoint.facts, files)

    def write(
        self,
        step: int,
        facts: Mapping[str, Any],
        files: Mapping[str, Chunks],
        *,
        expected_bytes: int = 0,
        part: Part = Part(),  # noqa: B008 (it is frozen)
        token: str | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        may_commit: Callable[[], None] = lambda: None,
        on_commit: Callable[[str], None] = lambda location: None,
    ) -> str:
        """Commit a checkpoint of these files; returns its location. A step that is committed already stays as it is,
        unless it is damaged.

        Of several writers (`part`, with the same `token`), number 0 commits once all have handed in their files; the
        others return when they have. `on_commit` is called the moment the commit is durable, on number 0;
        `may_commit` before anything is written and again right before the commit, and it may raise.

        Raises:
            CheckpointError: the storage refused, or it was `cancelled` while waiting for the other writers; what
                was committed before is untouched.
        """
        token = token or str(os.getpid())
        location = self.store.location(step)
        may_commit()
        try:
            if part.number == 0:
                self.store.sweep(token)
            if step in self.store.steps() and self.is_whole(step):
                self.store.sync()
            else:
                draft = self.store.draft(step, token, expected_bytes)
                self._fill(draft, step, facts, files, part, token, cancelled, may_commit)
            if part.number:
                return location
        except (OSError, DataPrepError) as error:
            raise CheckpointError(f"can't write checkpoint {location}: {_reason(error)}") from error
        self._whole.add(step)
        on_commit(location)
        self._tidy_up(step)
        return location

    def _fill(
        self,
        draft: Draft,
        step: int,
        facts: Mapping[str, Any],
        files: Mapping[str, Chunks],
        part: Part,
        token: str,
        cancelled: Callable[[], bool],
        may_commit: Callable[[], None],
    ) -> None:
        """Write this writer's files, and commit or hand in."""
        names = [*files, layout.STATE] if part.number == 0 else [*files, _hand_in(part.number, token)]
        try:
            records = {name: draft.write(name, chunks) for name, chunks in files.items()}
            if part.number:
                text = json.dumps({name: asdict(record) for name, record in records.items()}).encode()
                draft.write(names[-1], lambda: [text])
                return
            state = json.dumps({**facts, "step": step}, indent=2).encode()
            records[layout.STATE] = draft.write(layout.STATE, lambda: [state])
            others = [_hand_in(number, token) for number in range(1, part.count)]
            for name in others:
                records |= _await(draft, name, cancelled)
            if others:
                draft.discard(others)
            may_commit()
            draft.commit(layout.manifest_bytes(step, records))
        except BaseException:
            draft.discard(names)
            raise

    def _tidy_up(self, step: int) -> None:
        """Move `latest`, retire old steps. What fails here is tried again after the next save."""
        try:
            self.store.point_at(step)
            self._retire()
        except (OSError, DataPrepError) as error:
            logger.warning(
                "checkpoint %s is committed, but tidying up after it failed: %s",
                self.store.location(step),
                _reason(error),
            )

    def _retire(self) -> None:
        kept = whole = 0
        for step in reversed(self.store.steps()):
            if kept >= self.keep and whole >= 2:
                self.store.remove(step)
                continue
            kept += 1
            whole += whole < 2 and self.is_whole(step)

    def is_whole(self, step: int, read_again: bool = False) -> bool:
        """Whether a committed step is what was written. What this process wrote or has read once it takes for whole,
        unless it shall `read_again`."""
        if step in self._whole and not read_again:
            return True
        self._whole.discard(step)
        try:
            self.verify(step)
        except CheckpointError as error:
            logger.warning("%s", error)
            return False
        self._whole.add(step)
        return True

    def files(self, step: int) -> dict[str, FileRecord]:
        """What a committed step's manifest says.

        Raises:
            CheckpointError: it can't be read.
        """
        location = self.store.location(step)
        try:
            return layout.parse_manifest(self.store.read(step, layout.MANIFEST), location)
        except (OSError, DataPrepError) as error:
            raise CheckpointError(
                f"checkpoint {location} has no readable {layout.MANIFEST}: {_reason(error)}"
            ) from None

    def verify(self, step: int) -> None:
        """Read every file of a step and compare size and SHA-256 with its manifest.

        Raises:
            CheckpointError: a file is missing or isn't what was written; the message names it.
        """
        files = self.files(step)
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            for problem in pool.map(lambda name: self._problem(step, name, files[name]), files):
                if problem:
                    raise CheckpointError(f"checkpoint {self.store.location(step)}: {problem}")

    def _problem(self, step: int, name: str, wanted: FileRecord) -> str | None:
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in self.store.stream(step, name):
                digest.update(chunk)
                size += len(chunk)
        except (OSError, DataPrepError) as error:
            return f"{name} can't be read: {_reason(error)}"
        if size != wanted.bytes:
            return f"{name} isn't what was written: it has {size:,} bytes of {wanted.bytes:,}"
        if digest.hexdigest() != wanted.sha256:
            return f"{name} isn't what was written: its SHA-256 is {digest.hexdigest()}, not {wanted.sha256}"
        return None

    def newest(self, up_to: int | None = None) -> str | None:
        """The location of the newest checkpoint that is whole (of those up to step `up_to`), or None where there is
        none.

        A damaged one is passed over for the one before, with a warning. `latest` is a hint for people and tools;
        what counts is what is committed.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged; or the storage can't be read.
        """
        try:
            steps = [step for step in self.store.steps() if up_to is None or step <= up_to]
        except (OSError, DataPrepError) as error:
            raise CheckpointError(f"checkpoints can't be listed: {_reason(error)}") from error
        for step in reversed(steps):
            if self.is_whole(step, read_again=True):
                return self.store.location(step)
            logger.warning("passing over step %d for the checkpoint before it", step)
        if steps:
            folder = self.store.location(steps[-1]).rpartition("/")[0]
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {folder} are damaged: remove them to start anew"
            )
        return None

    def discard_after(self, step: int) -> list[int]:
        """Remove the steps after `step`, newest first (a run rolled back to it); returns them.

        Raises:
            CheckpointError: the storage refused.
        """
        try:
            late = [found for found in reversed(self.store.steps()) if found > step]
            for found in late:
                self.store.remove(found)
                self._whole.discard(found)
            if late:
                self.store.point_at(step)
        except (OSError, DataPrepError) as error:
            raise CheckpointError(f"can't remove checkpoints after step {step}: {_reason(error)}") from error
        return late


def load(location: str | Path) -> Checkpoint:
    """Read a checkpoint (verified by whoever chose it): full tensors, whoever and how many wrote it.

    From a folder they are mapped into memory, so ranks on one node share them.

    Raises:
        CheckpointError: a file can't be read, or a tensor isn't whole.
    """
    parent, _, name = str(location).rstrip("/").rpartition("/")
    step = layout.step_of(name)
    if step is None:
        raise CheckpointError(f"{location} is no checkpoint: they are named {layout.step_name(120)}, ...")
    checkpointer = Checkpointer(parent or ".")
    files = checkpointer.files(step)
    try:
        with checkpointer.store.on_disk(step, files) as folder:
            facts = json.loads((folder / layout.STATE).read_bytes())
            groups = layout.tensor_files(files)
            tensors = {
                group: read_tensors([folder / name for name in names]) for group, names in groups.items()
            }
            return Checkpoint(int(facts["step"]), tensors, facts)
    except (OSError, ValueError, KeyError, TypeError, DataPrepError) as error:
        raise CheckpointError(f"checkpoint {location} can't be read: {_reason(error)}") from None


def _hand_in(number: int, token: str) -> str:
    """The file in which a writer says what it wrote; no part of the checkpoint."""
    return f"hand-in-{token}-{number:05d}.json"


def _await(draft: Draft, name: str, cancelled: Callable[[], bool]) -> dict[str, FileRecord]:
    """What another writer wrote, once it has."""
    pause = _FIRST_LOOK
    while not cancelled():
        try:
            fields = json.loads(draft.read(name) or b"")
            return {file: FileRecord(**record) for file, record in fields.items()}
        except ValueError:  # not there, or not all of it
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_LOOK)
    raise CheckpointError(f"gave up waiting for another rank's part ({name})")


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
