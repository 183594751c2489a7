"""The samples of one shard, read from their source and handed to the writer of every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data_prep.annotations import fit_annotation, parse_detection
from data_prep.digest import annotated_hash, payload_checksum
from data_prep.errors import DataPrepError, RejectedSample
from data_prep.image_file import reason
from data_prep.images import Steps, StoredImage, store_image
from data_prep.index import IndexRow
from data_prep.manifest import Task
from data_prep.object_report import ObjectCounts, OddObject, report
from data_prep.source_config import SourceConfig
from data_prep.sources import AnnotatedSource, SampleRef, Source, open_source
from data_prep.writers import Payload, ShardWriter


@dataclass(frozen=True)
class ShardSamples:
    """What goes into a shard: samples in order, where they come from and what is done with their images."""

    task: Task
    split: str
    refs: tuple[SampleRef, ...]
    source: SourceConfig
    steps: Steps
    statistics: frozenset[int]
    """Positions in `refs` of the samples that go into the dataset's mean and standard deviation."""


class Rejected(BaseModel):
    """A sample that was left out, and why."""

    model_config = ConfigDict(frozen=True)

    split: str
    key: str
    location: str
    reason: str


@dataclass
class Filled:
    """What became of a shard's samples: index rows by format, the rejected ones, the pixels' histogram, and of
    annotated objects how many there are and which are odd."""

    rows: dict[str, list[IndexRow]]
    rejected: list[Rejected] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    objects: ObjectCounts = field(default_factory=ObjectCounts)
    odd_objects: list[OddObject] = field(default_factory=list)


def fill_shard(samples: ShardSamples, writers: Mapping[str, ShardWriter]) -> Filled:
    """Write all samples but the unusable ones; one is in memory at a time.

    Raises:
        DataPrepError: a source file can't be read.
        OSError: the output can't be written.
    """
    source = open_source(samples.source)
    filled = Filled({name: [] for name in writers})
    for position, ref in enumerate(samples.refs):
        try:
            image, annotation = _store(samples, source, position)
        except (DataPrepError, MemoryError):
            raise
        except Exception as error:
            told = str(error) if isinstance(error, RejectedSample) else reason(error)
            filled.rejected.append(
                Rejected(split=samples.split, key=ref.key, location=ref.location, reason=told)
            )
            continue
        if samples.task == "detection" and annotation is not None:
            counts, odd = report(parse_detection(annotation), samples.split, ref.key)
            filled.objects += counts
            filled.odd_objects += odd
        if image.histogram is not None:
            filled.histogram += image.histogram
        for name, writer in writers.items():
            payload = writer.add(ref.key, ref.label, image, annotation)
            filled.rows[name].append(_index_row(ref, image, annotation, payload))
    return filled


def _store(samples: ShardSamples, source: Source, position: int) -> tuple[StoredImage, bytes | None]:
    """A sample as it is stored, with its annotation where the task has one."""
    ref, annotation = samples.refs[position], None
    try:
        content = source.read(ref)
        if samples.task != "classification":
            assert isinstance(source, AnnotatedSource)
            annotation = source.annotation(ref)
    except FileNotFoundError as error:
        raise RejectedSample(f"there is no such file: {error.filename}") from None
    except OSError as error:
        raise DataPrepError(f"can't read sample {ref.key} of {samples.split}: {error}") from None
    image = store_image(content, samples.steps, histogram=position in samples.statistics)
    if annotation is None:
        return image, None
    image = replace(image, source_hash=annotated_hash(image.source_hash, annotation))
    stored_size = (image.height, image.width)
    return image, fit_annotation(samples.task, annotation, image.source_size, stored_size)


def _index_row(ref: SampleRef, image: StoredImage, annotation: bytes | None, payload: Payload) -> IndexRow:
    row = IndexRow(
        ref.key,
        payload.offset,
        len(payload.content),
        ref.label,
        payload_checksum(payload.content),
        payload.encoding,
        image.height,
        image.width,
        image.source_hash,
    )
    if annotation is None:
        return row
    return row._replace(
        annotation_offset=payload.annotation_offset,
        annotation_length=len(annotation),
        annotation_checksum=payload_checksum(annotation),
    )
