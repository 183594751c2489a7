"""One task of a data-prep job: write one shard in every format, with its indexes, or find it finished."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from data_prep.annotations.object_report import ObjectCounts, OddObject
from data_prep.dataset.checksums import read_back
from data_prep.dataset.index import IndexRow, read_index, write_rows
from data_prep.dataset.manifest import ShardInfo
from data_prep.errors import DataPrepError
from data_prep.shards.fill import Filled, Rejected, ShardSamples, fill_shard
from data_prep.storage.files import AtomicFiles, sha256_file, write_atomically
from data_prep.storage.json_files import DamagedJson, read_json
from data_prep.writers import WRITERS

WORK_FOLDER = ".prepare"
"""Holds the job's plan and a record per finished shard; gone when the dataset is finished."""


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard; paths are absolute."""

    output: Path
    number: int
    samples: ShardSamples
    formats: tuple[str, ...]
    plan: str

    @property
    def split(self) -> str:
        """The split the shard belongs to."""
        return self.samples.split

    @property
    def name(self) -> str:
        """`<split>-<six digits>`."""
        return f"{self.split}-{self.number:06d}"

    @property
    def record_path(self) -> Path:
        """Path of the finished shard's record."""
        return self.output / WORK_FOLDER / f"{self.name}.json"

    def path(self, format_name: str) -> Path:
        """The shard's file."""
        return self.output / shard_file(self.split, self.number, format_name)

    def index_path(self, format_name: str) -> Path:
        """The shard's index."""
        return self.path(format_name).with_suffix(".index.arrow")


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
    objects: ObjectCounts
    odd_objects: list[OddObject]
    mask_values: list[int] = []
    """Values that occur in the shard's masks."""
    num_oriented: int = 0
    """Images whose files have an EXIF orientation other than upright."""


def write_shard(task: ShardTask) -> ShardRecord:
    """Write the task's shard, or return its record if an earlier run finished it and it is intact.

    Raises:
        DataPrepError: a source file can't be read, or the output can't be written.
    """
    if record := _finished(task):
        return record
    try:
        filled, shards = _write_formats(task)
        record = ShardRecord(
            plan=task.plan,
            split=task.split,
            number=task.number,
            num_samples=len(task.samples.refs) - len(filled.rejected),
            shards=shards,
            rejected=filled.rejected,
            histogram=filled.histogram.tolist(),
            objects=filled.objects,
            odd_objects=filled.odd_objects,
            mask_values=np.flatnonzero(filled.mask_values).tolist(),
            num_oriented=filled.num_oriented,
        )
        # A record lost in a power cut costs writing the shard again, no more.
        write_atomically(task.record_path, record.model_dump_json().encode(), durable=False)
    except OSError as error:
        raise DataPrepError(f"can't write shard {task.name} under {task.output}: {error}") from None
    return record


def shard_file(split: str, number: int, format_name: str) -> str:
    """A shard's path relative to the dataset's folder."""
    return f"{format_name}/{split}-{number:06d}.{WRITERS[format_name].suffix}"


def _write_formats(task: ShardTask) -> tuple[Filled, dict[str, ShardInfo]]:
    """Hashed while they are written, or read back for it where a format's header comes last."""
    samples, shards = task.samples, {}
    with AtomicFiles() as files:
        opened = {name: files.open(task.path(name)) for name in task.formats}
        writers = {
            name: WRITERS[name](file, len(samples.refs), samples.task) for name, file in opened.items()
        }
        filled = fill_shard(samples, writers)
        hashes = {}
        for name, writer in writers.items():
            hashes[name] = writer.finish()
            if filled.rows[name]:
                files.sync(task.path(name))
            else:
                files.drop(task.path(name))
        for name, rows in filled.rows.items():
            if rows:
                shards[name] = _describe(task, files, name, opened[name], rows, hashes[name])
    return filled, shards


def _describe(
    task: ShardTask,
    files: AtomicFiles,
    format_name: str,
    shard: BinaryIO,
    rows: list[IndexRow],
    sha256: str | None,
) -> ShardInfo:
    """Write the index of a shard; read the shard back where its SHA-256 is not known."""
    path = task.path(format_name)
    index_path = task.index_path(format_name)
    index = files.open(index_path)
    write_rows(index, rows)
    files.sync(index_path)
    if sha256 is None:
        found = read_back(shard, read_index(index.name, full=True))
        if found.damaged:
            raise DataPrepError(f"{path} reads back differently than it was written: {found.damaged[0]}")
        sha256 = found.sha256
    return ShardInfo(
        file=path.relative_to(task.output).as_posix(),
        index=index_path.relative_to(task.output).as_posix(),
        num_samples=len(rows),
        bytes=os.fstat(shard.fileno()).st_size,
        sha256=sha256,
        index_sha256=sha256_file(Path(index.name)),
    )


def _finished(task: ShardTask) -> ShardRecord | None:
    try:
        record = read_json(task.record_path, ShardRecord)
    except (FileNotFoundError, DamagedJson):
        return None
    # What was rejected may be good by now, as a mount that came back is.
    intact = (
        record.plan == task.plan
        and not record.rejected
        and all(
            _intact(task.output / shard.file, shard.sha256)
            and _intact(task.output / shard.index, shard.index_sha256)
            for shard in record.shards.values()
        )
    )
    return record if intact else None


def _intact(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256
