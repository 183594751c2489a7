"""The samples of one shard, read from their source and handed to the writer of every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data_prep.annotations.annotations import expect_same_size, fit_mask, parse_detection
from data_prep.annotations.object_report import ObjectCounts, OddObject, report
from data_prep.config import SourceConfig
from data_prep.dataset.checksums import annotated_hash, payload_checksum
from data_prep.dataset.index import IndexRow
from data_prep.dataset.manifest import Task
from data_prep.errors import DataPrepError, RejectedSample
from data_prep.images.check_image import Steps, StoredImage, store_image
from data_prep.images.image_file import reason
from data_prep.images.orientation import other_view
from data_prep.sources import AnnotatedSource, SampleRef, Source, open_source
from data_prep.sources.parsing.source_folder import unicode_twins
from data_prep.writers import ShardWriter, WrittenPayload


@dataclass(frozen=True)
class ShardSamples:
    """The samples that go into a shard, in order, with the source they come from and what is done with their images."""

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
    """The result for a shard's samples: index rows by format, the rejected samples, the pixels' histogram, and of
    annotated objects how many there are and which are odd."""

    rows: dict[str, list[IndexRow]]
    rejected: list[Rejected] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    objects: ObjectCounts = field(default_factory=ObjectCounts)
    odd_objects: list[OddObject] = field(default_factory=list)
    mask_values: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(256, np.bool_))
    """Shape (256,): occurs the value in a mask?"""
    num_oriented: int = 0
    """Stored images whose files have an EXIF orientation other than upright."""


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
            image, annotation, occurring = _store(samples, source, position)
        except (DataPrepError, MemoryError):
            raise
        except Exception as error:
            told = str(error) if isinstance(error, RejectedSample) else reason(error)
            filled.rejected.append(
                Rejected(split=samples.split, key=ref.key, location=ref.location, reason=told)
            )
            continue
        filled.num_oriented += image.oriented
        if occurring is not None:
            filled.mask_values |= occurring
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


def _store(
    samples: ShardSamples, source: Source, position: int
) -> tuple[StoredImage, bytes | None, NDArray[np.bool_] | None]:
    """A sample as it is stored, with its annotation where the task has one, and the values that occur in a mask."""
    ref, annotation = samples.refs[position], None
    try:
        content = source.read(ref)
        if samples.task != "classification":
            assert isinstance(source, AnnotatedSource)
            annotation = source.annotation(ref)
    except FileNotFoundError as error:
        missing = Path(error.filename)
        raise RejectedSample(f"there is no such file: {missing}{_twin_of(missing)}") from None
    except OSError as error:
        raise DataPrepError(f"can't read sample {ref.key} of {samples.split}: {error}") from None
    image = store_image(content, samples.steps, histogram=position in samples.statistics)
    if annotation is None:
        return image, None, None
    image = replace(image, source_hash=annotated_hash(image.source_hash, annotation))
    hint = other_view(samples.steps.exif_orientation) if image.oriented else ""
    if samples.task == "segmentation":
        stored, occurring = fit_mask(annotation, image.source_size, image.seen_size, if_turned=hint)
        return image, stored, occurring
    expect_same_size(annotation, image.source_size, if_turned=hint)
    return image, annotation, None


def _twin_of(missing: Path) -> str:
    """Folders are listed only for names beyond ASCII, which alone can be written in two ways."""
    if missing.name.isascii() or not missing.parent.is_dir():
        return ""
    return unicode_twins([missing.name], (entry.name for entry in missing.parent.iterdir()))


def _index_row(
    ref: SampleRef, image: StoredImage, annotation: bytes | None, payload: WrittenPayload
) -> IndexRow:
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
