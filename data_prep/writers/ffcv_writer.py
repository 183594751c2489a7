"""`.beton` files, version 2, with the stock fields `image` (RGBImageField) and `label` (IntField), and where
the task has them `annotation` (JSONField for detection, BytesField for a mask's PNG file in segmentation).

The layout is written here rather than by `ffcv.writer.DatasetWriter`, because that one re-encodes every
JPEG, hangs for ever when a worker process meets an exception, and pads each file to two pages
(16.8 MB). So preparation needs no native build of ffcv; the tests compare the types below with
`ffcv.types`, and read the files through the stock `ffcv.loader.Loader`.

Layout: header, field descriptors, one metadata record a sample, payloads, allocation table. FFCV reads
either the mapped file or whole pages, so no payload may cross a boundary of its page size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset.index import ENCODED, RAW_RGB
from data_prep.dataset.manifest import Task
from data_prep.errors import DataPrepError
from data_prep.images.check_image import StoredImage
from data_prep.storage.files import GatheredWriter
from data_prep.writers.writer import WrittenPayload

VERSION = 2
HEADER_TYPE = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_TYPE = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION_TYPE = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
IMAGE_TYPE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ANNOTATION_TYPE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_IMAGE_AND_LABEL = ((b"image", 2), (b"label", 1))
FIELDS: dict[Task, tuple[tuple[bytes, int], ...]] = {
    "classification": _IMAGE_AND_LABEL,
    "detection": (*_IMAGE_AND_LABEL, (b"annotation", 5)),
    "segmentation": (*_IMAGE_AND_LABEL, (b"annotation", 3)),
}
"""Names and type ids: RGBImageField is 2, IntField 1, BytesField 3, JSONField 5."""
JSON_END = b"\0"
"""JSONField ends its text with it. The index's length and checksum leave it out, so that they are those of the
same annotation in a tar."""
MODE_OF_ENCODING = {ENCODED: 0, RAW_RGB: 1}
"""RGBImageField's modes: 0 is JPEG, 1 is raw pixels."""

_MIN_PAGE_BYTES = 1 << 21
_MAX_PAGE_BYTES = 1 << 31


def sample_type(task: Task) -> np.dtype[Any]:
    """A sample's metadata record, as `ffcv.types.get_metadata_type` makes it of the fields."""
    fields: list[tuple[str, Any]] = [("", IMAGE_TYPE), ("", "<i8")]
    return np.dtype(fields if task == "classification" else [*fields, ("", ANNOTATION_TYPE)], align=True)


def metadata_start(task: Task) -> int:
    """Returns the place where the samples' metadata begins, in bytes."""
    return HEADER_TYPE.itemsize + len(FIELDS[task]) * FIELD_TYPE.itemsize


class _Sample(NamedTuple):
    mode: int
    width: int
    height: int
    offset: int
    label: int
    annotation: tuple[int, int]


class FfcvWriter:
    """Streams payloads to their place and the metadata, whose room is reserved, at the end.

    The page starts at FFCV's minimum and doubles when a payload doesn't fit. That moves nothing
    already written: every boundary of the larger page is one of the smaller page, too.
    """

    suffix = "beton"

    def __init__(self, file: BinaryIO, capacity: int, task: Task = "classification") -> None:
        self._file = GatheredWriter(file)
        self._task: Task = task
        self._page_bytes = _MIN_PAGE_BYTES
        self._file.seek(metadata_start(task) + capacity * sample_type(task).itemsize)
        self._samples: list[_Sample] = []
        self._allocations: list[tuple[int, int, int]] = []

    def add(
        self, key: str, label: int, image: StoredImage, annotation: bytes | None = None
    ) -> WrittenPayload:
        """JPEG bytes go in unchanged as mode jpg, everything else as raw RGB pixels."""
        payload, encoding = image.beton_payload, image.beton_encoding
        size = (image.height, image.width)
        offset, annotation_offset = self.add_payload(key, label, payload, encoding, size, annotation)
        return WrittenPayload(offset, payload, encoding, annotation_offset)

    def add_payload(
        self,
        key: str,
        label: int,
        payload: bytes,
        encoding: int,
        size: tuple[int, int],
        annotation: bytes | None = None,
    ) -> tuple[int, int]:
        """Append a sample by its payload, a JPEG file or RGB pixels of `size` (height, width); returns the places where
        payload and annotation begin."""
        offset = self._append(key, payload)
        place = (0, 0)
        if annotation is not None:
            stored = annotation + JSON_END if self._task == "detection" else annotation
            place = (self._append(key, stored), len(stored))
        height, width = size
        self._samples.append(_Sample(MODE_OF_ENCODING[encoding], width, height, offset, label, place))
        return offset, place[0]

    def finish(self) -> str | None:
        """Write the allocation table, then metadata and header."""
        table = self._file.position
        self._file.write(np.array(self._allocations, ALLOCATION_TYPE).tobytes())
        header = np.zeros((), HEADER_TYPE)
        header["version"] = VERSION
        header["num_fields"] = len(FIELDS[self._task])
        header["page_size"] = self._page_bytes
        header["num_samples"] = len(self._samples)
        header["alloc_table_ptr"] = table
        fields = np.zeros(len(FIELDS[self._task]), FIELD_TYPE)
        for field, (name, type_id) in zip(fields, FIELDS[self._task], strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + _records(self._task, self._samples).tobytes())
        self._file.flush()
        return self._file.sha256

    def _append(self, key: str, content: bytes) -> int:
        size = len(content)
        if size > _MAX_PAGE_BYTES:
            raise DataPrepError(f"{key}: {size} bytes are too many for one FFCV sample ({_MAX_PAGE_BYTES})")
        while size > self._page_bytes:
            self._page_bytes *= 2
        offset = self._file.position
        if offset % self._page_bytes + size > self._page_bytes:
            offset += -offset % self._page_bytes
            self._file.seek(offset)
        self._file.write(content)
        self._allocations.append((len(self._samples), offset, size))
        return offset


def _records(task: Task, samples: list[_Sample]) -> NDArray[Any]:
    """Sample metadata, shape (n,); zeroed first, since numpy leaves the records' padding undefined."""
    records = np.zeros(len(samples), sample_type(task))
    images, labels, *annotations = _names(records)
    records[images] = np.array([sample[:4] for sample in samples], IMAGE_TYPE)
    records[labels] = [sample.label for sample in samples]
    for name in annotations:
        records[name] = np.array([sample.annotation for sample in samples], ANNOTATION_TYPE)
    return records


def _names(records: NDArray[Any]) -> tuple[str, ...]:
    return records.dtype.names or ()


_COLUMNS = ("mode", "width", "height", "offset", "length", "label", "annotation_offset", "annotation_length")


def read_beton(path: Path, task: Task = "classification") -> NDArray[Any]:
    """Reads what a `.beton` file says of its samples, as an int64 structured array of shape (n,) with the fields
    mode, width, height, offset, length, label, annotation_offset and annotation_length (without JSON's end mark).

    Raises:
        DataPrepError: it is not a `.beton` file with the task's fields, or its tables contradict each other.
    """
    content = np.memmap(path, np.uint8, mode="r")
    start = metadata_start(task)
    if content.size < start:
        raise DataPrepError(f"{path} is too short for a .beton file")
    header = content[: HEADER_TYPE.itemsize].view(HEADER_TYPE)[0]
    fields = content[HEADER_TYPE.itemsize : start].view(FIELD_TYPE)
    names = tuple((bytes(f["name"]).rstrip(b"\0"), int(f["type_id"])) for f in fields)
    if header["version"] != VERSION or header["num_fields"] != len(names) or names != FIELDS[task]:
        raise DataPrepError(f"{path} is not a .beton file of version {VERSION} with the fields of {task}")
    count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    metadata_end = start + count * sample_type(task).itemsize
    table_end = table + count * (len(names) - 1) * ALLOCATION_TYPE.itemsize
    if metadata_end > table or table_end != content.size:
        raise DataPrepError(f"{path} is damaged: its tables don't fit its {content.size} bytes")
    samples = content[start:metadata_end].view(sample_type(task))
    return _columns(task, samples, content[table:table_end].view(ALLOCATION_TYPE))


def _columns(task: Task, samples: NDArray[Any], table: NDArray[Any]) -> NDArray[Any]:
    sizes = dict(zip(table["ptr"].tolist(), table["size"].tolist(), strict=True))
    images, labels, *annotations = _names(samples)
    result = np.zeros(len(samples), [(name, np.int64) for name in _COLUMNS])
    for name, column in zip(_COLUMNS[:4], ("mode", "width", "height", "data_ptr"), strict=True):
        result[name] = samples[images][column]
    result["length"] = [sizes.get(offset, -1) for offset in samples[images]["data_ptr"].tolist()]
    result["label"] = samples[labels]
    for name in annotations:
        result["annotation_offset"] = samples[name]["ptr"]
        allocated = [sizes.get(offset, -1) for offset in samples[name]["ptr"].tolist()]
        stored = samples[name]["size"].astype(np.int64)
        end = len(JSON_END) if task == "detection" else 0
        result["annotation_length"] = np.where(stored == allocated, stored - end, -1)
    return result
