"""The record of a run: one append-only file of JSON lines, written before anything is sent anywhere.

A line is one record and ends in a newline. A process that dies while writing leaves a last line without one;
opening the journal again cuts it off, so every line that counts is whole. NaN and infinities are kept as
text, which JSON has no numbers for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data_prep.storage.json_files import Count
from data_prep.storage.urls import scrubbed

logger = logging.getLogger(__name__)

RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
STEPS_TAG = "steps"
"""Tag of a training run: the step at which it ends."""
_TAIL_BLOCK = 1 << 16


def now_ms() -> int:
    """Milliseconds since the epoch, MLflow's unit of time."""
    return time.time_ns() // 1_000_000


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    time: Count = Field(default_factory=now_ms, description="milliseconds since the epoch")


class Params(_Record):
    """Parameters by dotted name, as text."""

    kind: Literal["params"] = "params"
    values: dict[str, str]


class MetricsRecord(_Record):
    """Metrics of one step, all with the same time."""

    kind: Literal["metrics"] = "metrics"
    step: Count
    values: dict[str, float]


class Tags(_Record):
    """Tags of the run; the last value of a name holds. Passwords and tokens in URLs are left out."""

    kind: Literal["tags"] = "tags"
    values: dict[str, Annotated[str, AfterValidator(scrubbed)]]


class Artifact(_Record):
    """A file or folder to upload, and the artifact folder it goes to."""

    kind: Literal["artifact"] = "artifact"
    source: str
    folder: str = ""


class Dataset(_Record):
    """A dataset the run read, or one split of it with its number of samples and classes (0: unknown)."""

    kind: Literal["dataset"] = "dataset"
    name: str
    digest: str
    source: str
    context: str
    split: str = ""
    rows: Count = 0
    classes: Count = 0


class ModelInput(_Record):
    """A version of a registered model that the run began from; or that it judges, with what it found on a split of a
    dataset. The run's own record of these metrics has the same time and step 0."""

    kind: Literal["model_input"] = "model_input"
    model: str
    version: str
    values: dict[str, float] = {}
    dataset: str = ""
    dataset_digest: str = ""
    split: str = ""


class Status(_Record):
    """The run starts (again) or ends."""

    kind: Literal["status"] = "status"
    status: RunStatus

    @property
    def is_end(self) -> bool:
        """Whether the run ends with it, for now."""
        return self.status != "RUNNING"


class VersionTags(_Record):
    """Tags of a version of a registered model that this run says something about; `run_tag` gets the run's id."""

    kind: Literal["version_tags"] = "version_tags"
    model: str
    version: str
    run_tag: str
    values: dict[str, str]


class _OfCheckpoint(_Record):
    """Something about one checkpoint. Its `digest` tells it from another at the same location: a step that was rolled
    back and done again has one checkpoint before and one after."""

    location: Annotated[str, AfterValidator(scrubbed)]
    digest: str = ""
    step: Count

    def key(self, journal_id: str) -> str:
        """Returns the name by which the checkpoint is found again: a hash of journal, location and digest."""
        return hashlib.sha256(f"{journal_id}\n{self.location}\n{self.digest}".encode()).hexdigest()[:32]


class CheckpointCommitted(_OfCheckpoint):
    """A checkpoint is there, with plain `facts` about it."""

    kind: Literal["checkpoint"] = "checkpoint"
    facts: dict[str, str] = {}


class CheckpointRetired(_OfCheckpoint):
    """A checkpoint is gone, since newer ones are kept or training went back to before it."""

    kind: Literal["checkpoint_retired"] = "checkpoint_retired"
    reason: Literal["newer", "rollback"]


class CheckpointMetrics(_OfCheckpoint):
    """The metrics of a checkpoint on a dataset. The run's own record of them has the same time."""

    kind: Literal["checkpoint_metrics"] = "checkpoint_metrics"
    values: dict[str, float]
    dataset: str
    dataset_digest: str
    split: str = ""


CheckpointRecord = CheckpointCommitted | CheckpointRetired | CheckpointMetrics
Record = (
    Params | MetricsRecord | Tags | Artifact | Dataset | ModelInput | Status | VersionTags | CheckpointRecord
)
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@dataclass(frozen=True)
class Chunk:
    """Consecutive records, the byte offset behind each, and the one behind all (damaged lines included)."""

    records: list[Record]
    ends: list[int]
    end: int
    damaged: int = 0


class Journal:
    """The writing end. `append` costs one write to the page cache; it survives the death of the process.

    `sync` makes it survive the death of the machine too.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._whole_lines = True
        _cut_torn_line(self._descriptor, path)

    def append(self, record: Record) -> None:
        """Add one record.

        Raises:
            OSError: the disk is full or gone; what was written of the line is void.
        """
        line = record.model_dump_json().encode() + b"\n"
        if not self._whole_lines:
            line = b"\n" + line
        self._whole_lines = False
        written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")
        self._whole_lines = True

    def sync(self) -> None:
        """Return when all records are on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._descriptor >= 0:
            self.sync()
            os.close(self._descriptor)
            self._descriptor = -1


def _cut_torn_line(descriptor: int, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    end = size
    while end > 0:
        start = max(0, end - _TAIL_BLOCK)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        logger.warning("%s: cut off a half-written last line of %d bytes", path, size - end)
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)


def read_chunk(path: Path, offset: int = 0, max_bytes: int = 1 << 20) -> Chunk:
    """Whole records from byte `offset` on, about `max_bytes` of them; none where the journal ends.

    A line that is no record (a disk's fault) is skipped and counted.
    """
    records: list[Record] = []
    ends: list[int] = []
    end, damaged = offset, 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return Chunk([], [], offset)
    with file:
        file.seek(offset)
        while end - offset < max_bytes:
            line = file.readline()
            if not line.endswith(b"\n"):
                break
            end += len(line)
            if line == b"\n":
                continue
            try:
                records.append(_RECORD.validate_json(line))
                ends.append(end)
            except ValidationError:
                damaged += 1
    if damaged:
        logger.warning("%s: %d damaged lines after byte %d are left out", path, damaged, offset)
    return Chunk(records, ends, end, damaged)


def tail_start(path: Path, max_bytes: int) -> int:
    """The byte offset of the first whole line among the last `max_bytes` of a journal; 0 where it is shorter, or none.

    Raises:
        OSError: it can't be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        start = os.fstat(file.fileno()).st_size - max_bytes
        if start <= 0:
            return 0
        file.seek(start - 1)  # a line that begins at `start` is whole
        return start - 1 + len(file.readline())


def records_of(path: Path) -> Iterator[Record]:
    """All whole records, a piece of the journal at a time.

    Raises:
        OSError: it can't be read.
    """
    offset = 0
    while True:
        chunk = read_chunk(path, offset)
        yield from chunk.records
        if chunk.end == offset:
            return
        offset = chunk.end


def metrics_at(path: Path, step: int) -> dict[str, float]:
    """The metrics on record of one step; of a step done twice, the later ones."""
    found: dict[str, float] = {}
    for record in records_of(path):
        if isinstance(record, MetricsRecord) and record.step == step:
            found |= record.values
    return found


def metric_history(path: Path) -> list[tuple[int, dict[str, float]]]:
    """All metrics on record as (step, values), by step; of a step done twice, the later time."""
    by_step: dict[int, dict[str, float]] = {}
    for record in records_of(path):
        if isinstance(record, MetricsRecord):
            by_step[record.step] = by_step.get(record.step, {}) | record.values
    return sorted(by_step.items())


def checkpoint_history(path: Path) -> list[Record]:
    """All that is on record of checkpoints, and the run's metrics of evaluations, in their order.

    Raises:
        OSError: the journal can't be read.
    """
    return [
        record
        for record in records_of(path)
        if isinstance(record, CheckpointRecord)
        or (isinstance(record, MetricsRecord) and _is_evaluation(record))
    ]


def _is_evaluation(record: MetricsRecord) -> bool:
    return any(name.startswith("eval/") for name in record.values)


def tag_history(path: Path) -> dict[str, set[str]]:
    """All values that each tag on record has had."""
    found: dict[str, set[str]] = {}
    for record in records_of(path):
        if isinstance(record, Tags):
            for name, value in record.values.items():
                found.setdefault(name, set()).add(value)
    return found


def datasets_of(path: Path) -> list[Dataset]:
    """The datasets on record, in their order."""
    return [record for record in records_of(path) if isinstance(record, Dataset)]


def artifact_folders(path: Path) -> set[str]:
    """The artifact folders that something on record goes to."""
    records = records_of(path)
    return {record.folder for record in records if isinstance(record, Artifact)}
