"""`.beton` files, version 2, with the stock fields `image` (RGBImageField) and `label` (IntField).

The layout is written here rather than by `ffcv.writer.DatasetWriter`, because that one re-encodes every
JPEG, hangs for ever when a worker process meets an exception, and pads each file to two pages
(16.8 MB). So preparation needs no native build of ffcv; the tests compare the types below with
`ffcv.types`, and read the files through the stock `ffcv.loader.Loader`.

Layout: header, field descriptors, one metadata record a sample, payloads, allocation table. FFCV reads
either the mapped file or whole pages, so no payload may cross a boundary of its page size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataPrepError
from data_prep.images import StoredImage
from data_prep.index import ENCODED, RAW_RGB
from data_prep.writers.base import Payload

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
SAMPLE_TYPE = np.dtype([("", IMAGE_TYPE), ("", "<i8")], align=True)
FIELDS = ((b"image", 2), (b"label", 1))
"""Names and type ids of RGBImageField and IntField."""
MODE_OF_ENCODING = {ENCODED: 0, RAW_RGB: 1}
"""RGBImageField's modes: 0 is JPEG, 1 is raw pixels."""

_MIN_PAGE_BYTES = 1 << 21
_MAX_PAGE_BYTES = 1 << 31
_METADATA_START = HEADER_TYPE.itemsize + len(FIELDS) * FIELD_TYPE.itemsize


class FfcvWriter:
    """Streams payloads to their place and the metadata, whose room is reserved, at the end.

    The page starts at FFCV's minimum and doubles when a payload doesn't fit. That moves nothing
    already written: every boundary of the larger page is one of the smaller page, too.
    """

    suffix = "beton"

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        self._file = file
        self._page_bytes = _MIN_PAGE_BYTES
        self._position = _METADATA_START + capacity * SAMPLE_TYPE.itemsize
        self._samples: list[tuple[tuple[int, int, int, int], int]] = []
        self._allocations: list[tuple[int, int, int]] = []

    def add(self, key: str, label: int, image: StoredImage) -> Payload:
        """JPEG bytes go in unchanged as mode jpg, everything else as raw RGB pixels."""
        size = len(image.beton_payload)
        if size > _MAX_PAGE_BYTES:
            raise DataPrepError(f"{key}: {size} bytes are too many for one FFCV sample ({_MAX_PAGE_BYTES})")
        while size > self._page_bytes:
            self._page_bytes *= 2
        if self._position % self._page_bytes + size > self._page_bytes:
            self._position += -self._position % self._page_bytes
        offset = self._position
        self._file.seek(offset)
        self._file.write(image.beton_payload)
        self._position += size
        mode = MODE_OF_ENCODING[image.beton_encoding]
        self._allocations.append((len(self._samples), offset, size))
        self._samples.append(((mode, image.width, image.height, offset), label))
        return Payload(offset, image.beton_payload, image.beton_encoding)

    def finish(self) -> None:
        """Write the allocation table, then metadata and header."""
        self._file.seek(self._position)
        self._file.write(np.array(self._allocations, ALLOCATION_TYPE).tobytes())
        header = np.zeros((), HEADER_TYPE)
        header["version"] = VERSION
        header["num_fields"] = len(FIELDS)
        header["page_size"] = self._page_bytes
        header["num_samples"] = len(self._samples)
        header["alloc_table_ptr"] = self._position
        fields = np.zeros(len(FIELDS), FIELD_TYPE)
        for field, (name, type_id) in zip(fields, FIELDS, strict=True):
            field["type_id"] = type_id
            field["name"][: len(name)] = np.frombuffer(name, np.uint8)
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + _records(self._samples).tobytes())


def _records(samples: list[tuple[tuple[int, int, int, int], int]]) -> NDArray[Any]:
    """Sample metadata, shape (n,); zeroed first, since numpy leaves the records' padding undefined."""
    records = np.zeros(len(samples), SAMPLE_TYPE)
    images, labels = SAMPLE_TYPE.names or ()
    records[images] = np.array([image for image, _ in samples], IMAGE_TYPE)
    records[labels] = [label for _, label in samples]
    return records


def read_beton(path: Path) -> NDArray[Any]:
    """What a `.beton` file says of its samples, as a structured array of shape (n,) with the fields
    mode, width, height, offset, length and label.

    Raises:
        DataPrepError: it is not a `.beton` file with the fields `image` and `label`.
    """
    content = np.memmap(path, np.uint8, mode="r")
    if content.size < _METADATA_START:
        raise DataPrepError(f"{path} is too short for a .beton file")
    header = content[: HEADER_TYPE.itemsize].view(HEADER_TYPE)[0]
    fields = content[HEADER_TYPE.itemsize : _METADATA_START].view(FIELD_TYPE)
    names = tuple((bytes(f["name"]).rstrip(b"\0"), int(f["type_id"])) for f in fields)
    if header["version"] != VERSION or names != FIELDS:
        raise DataPrepError(f"{path} is not a .beton file of version {VERSION} with image and label fields")
    count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    metadata_end = _METADATA_START + count * SAMPLE_TYPE.itemsize
    table_end = table + count * ALLOCATION_TYPE.itemsize
    if metadata_end > table or table_end != content.size:
        raise DataPrepError(f"{path} is damaged: its tables don't fit its {content.size} bytes")
    samples = content[_METADATA_START:metadata_end].view(SAMPLE_TYPE)
    sizes = dict(zip(*_columns(content[table:table_end].view(ALLOCATION_TYPE)), strict=True))
    images, labels = SAMPLE_TYPE.names or ()
    names_out = ("mode", "width", "height", "offset", "length", "label")
    result = np.zeros(count, [(name, np.int64) for name in names_out])
    for name, column in zip(names_out[:4], ("mode", "width", "height", "data_ptr"), strict=True):
        result[name] = samples[images][column]
    result["length"] = [sizes.get(int(offset), -1) for offset in result["offset"]]
    result["label"] = samples[labels]
    return result


def _columns(table: NDArray[Any]) -> tuple[list[int], list[int]]:
    return table["ptr"].tolist(), table["size"].tolist()
