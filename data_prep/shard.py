"""One task of a data-prep job: write one shard in every format, with its indexes, or find it finished."""

from __future__ import annotations

import mmap
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.digest import payload_checksum
from data_prep.errors import DataPrepError
from data_prep.files import atomic_file, sha256_file, write_atomically
from data_prep.images import RejectedImage, Steps, StoredImage, store_image
from data_prep.index import IndexRow, write_index
from data_prep.manifest import ShardInfo
from data_prep.source_config import SourceConfig
from data_prep.sources import SampleRef, open_source
from data_prep.writers import WRITERS, Payload

WORK_FOLDER = ".prepare"
"""Holds the job's plan and a record per finished shard; gone when the dataset is finished."""


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard; paths are absolute."""

    output: Path
    split: str
    number: int
    refs: tuple[SampleRef, ...]
    source: SourceConfig
    formats: tuple[str, ...]
    steps: Steps
    statistics_images: int
    """How many of the first samples go into the dataset's mean and standard deviation."""
    plan: str

    @property
    def name(self) -> str:
        """`<split>-<six digits>`."""
        return f"{self.split}-{self.number:06d}"

    @property
    def record_path(self) -> Path:
        """Where the finished shard is recorded."""
        return self.output / WORK_FOLDER / f"{self.name}.json"


class Rejected(BaseModel):
    """A sample that was left out, and why."""

    model_config = ConfigDict(frozen=True)

    split: str
    key: str
    location: str
    reason: str


class ShardRecord(BaseModel):
    """A finished shard: its files by format (none if every sample was rejected) and what was seen in it."""

    model_config = ConfigDict(frozen=True)

    plan: str
    split: str
    number: int
    num_samples: int
    shards: dict[str, ShardInfo]
    rejected: list[Rejected]
    histogram: list[list[int]]
    """Counts of values 0..255 in R, G and B over the samples taken for statistics."""


def write_shard(task: ShardTask) -> ShardRecord:
    """Write the task's shard, or return its record if an earlier run finished it and it is intact.

    Raises:
        DataPrepError: a source file can't be read, or the output can't be written.
    """
    if record := _finished(task):
        return record
    try:
        rows, rejected, histogram = _write_formats(task)
        shards = {name: _describe(task, name, rows[name]) for name in task.formats if rows[name]}
        for name in set(task.formats) - set(shards):
            (task.output / shard_file(task.split, task.number, name)).unlink()
        record = ShardRecord(
            plan=task.plan,
            split=task.split,
            number=task.number,
            num_samples=len(task.refs) - len(rejected),
            shards=shards,
            rejected=rejected,
            histogram=histogram.tolist(),
        )
        write_atomically(task.record_path, record.model_dump_json().encode())
    except OSError as error:
        raise DataPrepError(f"can't write shard {task.name} under {task.output}: {error}") from None
    return record


def shard_file(split: str, number: int, format_name: str) -> str:
    """A shard's path relative to the dataset's folder."""
    return f"{format_name}/{split}-{number:06d}.{WRITERS[format_name].suffix}"


def _index_file(file: str) -> str:
    return str(Path(file).with_suffix(".index.arrow"))


def _write_formats(
    task: ShardTask,
) -> tuple[dict[str, list[IndexRow]], list[Rejected], NDArray[np.int64]]:
    source = open_source(task.source)
    rows: dict[str, list[IndexRow]] = {name: [] for name in task.formats}
    rejected: list[Rejected] = []
    histogram = np.zeros((3, 256), np.int64)
    with ExitStack() as files:
        writers = {}
        for name in task.formats:
            path = task.output / shard_file(task.split, task.number, name)
            writers[name] = WRITERS[name](files.enter_context(atomic_file(path)), len(task.refs))
        for position, ref in enumerate(task.refs):
            try:
                content = source.read(ref)
            except OSError as error:
                raise DataPrepError(f"can't read sample {ref.key} of {task.split}: {error}") from None
            try:
                image = store_image(content, task.steps, histogram=position < task.statistics_images)
            except RejectedImage as error:
                rejected.append(
                    Rejected(split=task.split, key=ref.key, location=ref.location, reason=str(error))
                )
                continue
            if image.histogram is not None:
                histogram += image.histogram
            for name, writer in writers.items():
                rows[name].append(_index_row(ref, image, writer.add(ref.key, ref.label, image)))
        for writer in writers.values():
            writer.finish()
    return rows, rejected, histogram


def _index_row(ref: SampleRef, image: StoredImage, payload: Payload) -> IndexRow:
    return IndexRow(
        key=ref.key,
        offset=payload.offset,
        length=len(payload.content),
        label=ref.label,
        checksum=payload_checksum(payload.content),
        encoding=payload.encoding,
        height=image.height,
        width=image.width,
        source_hash=image.source_hash,
    )


def _describe(task: ShardTask, format_name: str, rows: list[IndexRow]) -> ShardInfo:
    """Write the index of a finished shard file, after reading every payload back from the file."""
    file = shard_file(task.split, task.number, format_name)
    path = task.output / file
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for row in rows:
            if payload_checksum(content[row.offset : row.offset + row.length]) != row.checksum:
                raise DataPrepError(f"{path}: sample {row.key} reads back differently than it was written")
    index = _index_file(file)
    write_index(task.output / index, rows)
    return ShardInfo(
        file=file,
        index=index,
        num_samples=len(rows),
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        index_sha256=sha256_file(task.output / index),
    )


def _finished(task: ShardTask) -> ShardRecord | None:
    try:
        record = ShardRecord.model_validate_json(task.record_path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    intact = record.plan == task.plan and all(
        _intact(task.output / shard.file, shard.sha256)
        and _intact(task.output / shard.index, shard.index_sha256)
        for shard in record.shards.values()
    )
    return record if intact else None


def _intact(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256
