"""Saving and finding a run's state. A step is committed or it does not exist."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from convmlp_platform.checkpoints import layout
from convmlp_platform.checkpoints.layout import FileRecord, Part
from convmlp_platform.checkpoints.stores.store import CheckpointDraft, Chunks, open_store
from convmlp_platform.checkpoints.tensor_file import TensorSlice, read_tensors
from convmlp_platform.errors import CheckpointError, SupersededError, cause_of
from data_prep.errors import DataPrepError, Unreachable, may_pass
from data_prep.storage.json_files import DamagedJson, parse_json, read_json

logger = logging.getLogger(__name__)
Form = TypeVar("Form")
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
    slices: Mapping[str, Mapping[str, TensorSlice]] = field(default_factory=dict)
    digest: str = ""
    """Of its manifest (layout.manifest_digest), once it was read."""


@dataclass
class _Durable:
    """This process's files of the save called `token`. They are neither written again nor, once `offered`, removed by
    it: a commit may name them, also one that seems to have failed."""

    step: int
    token: str
    files: dict[str, FileRecord]
    offered: bool = False


class Checkpointer:
    """The checkpoints of one run under `location` (a folder or URL).

    Saving: stage → every file durable and hashed → manifest → one rename → `latest` → retire old ones. The newest
    two that are whole are never retired. A crash at any instant leaves the newest committed step loadable, and any
    of it may be tried again.
    """

    def __init__(self, location: str | Path, keep: int = 3) -> None:
        if keep < 2:
            raise ValueError(f"keep (={keep}) must be at least 2")
        self.store, self.keep = open_store(location), keep
        self._whole: set[int] = set()
        """Steps that this process has written, or read and found intact."""
        self._draft: _Durable | None = None

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
        on_progress: Callable[[str, int], None] = lambda name, written: None,
        on_written: Callable[[], None] = lambda: None,
        on_commit: Callable[[str, str], None] = lambda location, digest: None,
        on_retired: Callable[[int], None] = lambda step: None,
    ) -> str:
        """Commit a checkpoint of these files; returns its location. A step that is committed already stays as it is,
        unless it is damaged.

        Of several writers (`part`, with the same `token`), number 0 commits once all have handed in their files; the
        others return when they have. What fails may be called again with the same token.

        Args:
            token: a name for this save that its writers share, and no other save.
            cancelled: asked while waiting for the other writers.
            may_commit: called before anything is written and again right before the commit; it may raise.
            on_progress: told how many bytes of which file have been handed to the storage.
            on_written: called when this writer's own files are durable.
            on_commit: called with the location and the manifest's digest the moment the commit is durable, on number 0.
            on_retired: called with each step that was removed because newer ones are kept.

        Raises:
            CheckpointError: the storage refused, or it was `cancelled` while waiting for the other writers; what
                was committed before is untouched.
        """
        token = token or f"process-{os.getpid()}.{time.monotonic_ns()}"
        location = self.store.location(step)
        counted = {name: _counted(name, chunks, on_progress) for name, chunks in files.items()}
        try:
            may_commit()
            if part.number:
                draft, mine = self._fill(step, token, counted, expected_bytes)
                draft.hand_in(part.number, layout.hand_in_bytes(mine))
                on_written()
                return location
            self._sweep(token)
            present = self.store.commit_of(step)
            if present is not None and self.is_whole(step):
                self.store.sync()
                digest = self._digest(step)
            else:
                counted[layout.STATE] = lambda: [_state(step, facts)]
                draft, mine = self._fill(step, token, counted, expected_bytes, present)
                on_written()
                digest = self._commit(draft, mine, step, part, cancelled, may_commit)
        except (OSError, DataPrepError) as error:
            raise CheckpointError(f"can't write checkpoint {location}: {_reason(error)}") from error
        self._whole.add(step)
        on_commit(location, digest)
        self._tidy_up(step, token, may_commit, on_retired)
        return location

    def _fill(
        self,
        step: int,
        token: str,
        files: Mapping[str, Chunks],
        expected_bytes: int,
        replaces: str | None = None,
    ) -> tuple[CheckpointDraft, dict[str, FileRecord]]:
        """This writer's files in the draft, durable; a try before this one may have written them."""
        if self._draft is not None and (self._draft.step, self._draft.token) == (step, token):
            return self.store.draft(step, token, 0, replaces), dict(self._draft.files)
        self._draft = None
        draft = self.store.draft(step, token, expected_bytes, replaces)
        try:
            records = {name: draft.write(name, chunks) for name, chunks in files.items()}
        except BaseException:
            draft.discard(files)
            raise
        self._draft = _Durable(step, token, records)
        return draft, records

    def _commit(
        self,
        draft: CheckpointDraft,
        mine: Mapping[str, FileRecord],
        step: int,
        part: Part,
        cancelled: Callable[[], bool],
        may_commit: Callable[[], None],
    ) -> str:
        """Commit once all writers have handed in; returns the manifest's digest."""
        assert self._draft is not None
        records = dict(mine)
        try:
            for number in range(1, part.count):
                records |= _await(draft, number, cancelled)
            may_commit()
        except CheckpointError:  # nobody will commit it any more
            if not self._draft.offered:
                draft.discard(mine)
                self._draft = None
            raise
        self._draft.offered = True
        try:
            draft.commit(layout.manifest_bytes(step, records))
        except OSError as error:
            if error.errno == errno.ENOENT:  # some of it is lost: it is written again
                self._draft = None
            raise
        return layout.manifest_digest(records)

    def _sweep(self, token: str) -> None:
        try:
            self.store.sweep(token)
        except (OSError, DataPrepError) as error:
            logger.warning("unfinished checkpoints can't be removed: %s", _reason(error))

    def _digest(self, step: int) -> str:
        """The digest of a committed step's manifest; empty where it can't be read now, which costs only that."""
        try:
            return layout.manifest_digest(self.files(step))
        except CheckpointError as error:
            logger.warning("%s", error)
            return ""

    def _tidy_up(
        self, step: int, token: str, may_commit: Callable[[], None], on_retired: Callable[[int], None]
    ) -> None:
        """Move `latest`, retire old steps. What fails here is tried again after the next save.

        Raises:
            SupersededError: by `may_commit`; then nothing was changed.
        """
        try:
            may_commit()
            self.store.tidy(step, [record.place(name) for name, record in self.files(step).items()], token)
            self.store.point_at(step)
            self._retire(on_retired)
        except SupersededError:
            raise
        except (OSError, DataPrepError, CheckpointError) as error:
            logger.warning(
                "checkpoint %s is committed, but tidying up after it failed: %s",
                self.store.location(step),
                _reason(error),
            )

    def _retire(self, on_retired: Callable[[int], None]) -> None:
        kept = whole = 0
        for step in reversed(self.store.steps()):
            if kept >= self.keep and whole >= 2:
                self.store.remove(step)
                on_retired(step)
                continue
            kept += 1
            whole += whole < 2 and self.is_whole(step)

    def is_whole(self, step: int, read_again: bool = False) -> bool:
        """Whether a committed step is what was written. What this process wrote or has read once it takes for whole,
        unless it shall `read_again`.

        Raises:
            CheckpointError: the storage can't be asked now.
        """
        return self._damage(step, read_again) is None

    def _damage(self, step: int, read_again: bool) -> CheckpointError | None:
        """See `is_whole`: what is wrong with the step."""
        if step in self._whole and not read_again:
            return None
        self._whole.discard(step)
        try:
            self.verify(step)
        except CheckpointError as error:
            if _is_away(error.__cause__):
                raise
            logger.warning("%s", error)
            return error
        self._whole.add(step)
        return None

    def files(self, step: int) -> dict[str, FileRecord]:
        """Returns the file records of a committed step's manifest, by name.

        Raises:
            CheckpointError: it can't be read.
        """
        location = self.store.location(step)
        try:
            return layout.parse_manifest(self.store.read(step, layout.MANIFEST), location)
        except (OSError, DataPrepError) as error:
            raise CheckpointError(
                f"checkpoint {location} has no readable {layout.MANIFEST}: {_reason(error)}"
            ) from error

    def facts(self, step: int, form: type[Form]) -> Form:
        """Returns a committed step's state beside its tensors, as a value of `form` (see `parse_json`).

        Raises:
            CheckpointError: it can't be read.
        """
        record = self.files(step)[layout.STATE]
        try:
            content = self.store.read(step, record.place(layout.STATE))
            return parse_json(content, form, finite=False)
        except (OSError, DataPrepError, DamagedJson) as error:
            raise CheckpointError(
                f"checkpoint {self.store.location(step)} has no readable {layout.STATE}: {_reason(error)}"
            ) from error

    def verify(self, step: int) -> None:
        """Read every file of a step and compare size and SHA-256 with its manifest.

        Raises:
            CheckpointError: a file is missing or isn't what was written; the message names it.
        """
        files = self.files(step)
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            for _ in pool.map(lambda name: self._verify_file(step, name, files[name]), files):
                pass

    def _verify_file(self, step: int, name: str, wanted: FileRecord) -> None:
        digest, size = hashlib.sha256(), 0
        where = f"checkpoint {self.store.location(step)}: {name}"
        try:
            for chunk in self.store.stream(step, wanted.place(name)):
                digest.update(chunk)
                size += len(chunk)
        except (OSError, DataPrepError) as error:
            raise CheckpointError(f"{where} can't be read: {_reason(error)}") from error
        if size != wanted.bytes:
            raise CheckpointError(
                f"{where} isn't what was written: it has {size:,} bytes of {wanted.bytes:,}"
            )
        if digest.hexdigest() != wanted.sha256:
            raise CheckpointError(
                f"{where} isn't what was written: its SHA-256 is {digest.hexdigest()}, not {wanted.sha256}"
            )

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
        unread = False
        for step in reversed(steps):
            damage = self._damage(step, read_again=True)
            if damage is None:
                return self.store.location(step)
            unread |= cause_of(damage) == "storage"
            logger.warning("passing over step %d for the checkpoint before it", step)
        if steps:
            folder = self.store.location(steps[-1]).rpartition("/")[0]
            raise CheckpointError(
                f"all {len(steps)} checkpoints in {folder} are damaged: remove them to start anew",
                cause="storage" if unread else "job",
            )
        return None

    def discard_after(
        self,
        step: int,
        may_change: Callable[[], None] = lambda: None,
        on_discarded: Callable[[int], None] = lambda step: None,
    ) -> list[int]:
        """Remove the steps after `step`, newest first (a run rolled back to it); returns them.

        `may_change` is called before each, and it may raise; `on_discarded` after each, with its step.

        Raises:
            CheckpointError: the storage refused.
        """
        try:
            late = [found for found in reversed(self.store.steps()) if found > step]
            for found in late:
                may_change()
                self.store.remove(found)
                self._whole.discard(found)
                on_discarded(found)
            if late:
                self.store.point_at(step)
        except (OSError, DataPrepError) as error:
            raise CheckpointError(f"can't remove checkpoints after step {step}: {_reason(error)}") from error
        return late


def _is_away(error: BaseException | None) -> bool:
    """Whether the storage as a whole can't be read now. An I/O error may be that of one sector: then the checkpoint
    before it is a way out."""
    if isinstance(error, OSError):
        return may_pass(error) and error.errno != errno.EIO
    return isinstance(error, Unreachable)


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
            facts = read_json(folder / layout.STATE, dict[str, Any], finite=False)
            groups = layout.tensor_files(files)
            tensors = {
                group: read_tensors([folder / name for name in names]) for group, names in groups.items()
            }
            return Checkpoint(int(facts["step"]), tensors, facts, digest=layout.manifest_digest(files))
    except (OSError, ValueError, KeyError, TypeError, DataPrepError) as error:
        raise CheckpointError(f"checkpoint {location} can't be read: {_reason(error)}") from error


def _state(step: int, facts: Mapping[str, Any]) -> bytes:
    return json.dumps({**facts, "step": step}, indent=2).encode()


def _counted(name: str, chunks: Chunks, on_progress: Callable[[str, int], None]) -> Chunks:
    """The same content; `on_progress` hears how much of it the storage has taken."""

    def counted() -> Iterator[memoryview | bytes]:
        done = 0
        for chunk in chunks():
            yield chunk
            done += len(chunk)
            on_progress(name, done)

    return counted


def _await(draft: CheckpointDraft, number: int, cancelled: Callable[[], bool]) -> dict[str, FileRecord]:
    """Waits until another writer has handed in its part, and returns the records of its files by name."""
    pause = _FIRST_LOOK
    while True:
        given_up = cancelled()
        if (content := draft.handed_in(number)) is not None:
            return layout.parse_hand_in(content)
        if given_up:
            raise CheckpointError(f"gave up waiting for another rank's part ({number})")
        time.sleep(pause)
        pause = min(1.5 * pause, _LONGEST_LOOK)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
