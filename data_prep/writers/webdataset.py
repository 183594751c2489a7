"""Plain tars in WebDataset's convention: `<key>.<image suffix>` and `<key>.cls` side by side."""

from __future__ import annotations

import tarfile
from typing import BinaryIO

from data_prep.images import StoredImage
from data_prep.index import ENCODED
from data_prep.writers.base import Payload


class WebDatasetWriter:
    """Appends members by hand, because tarfile doesn't tell where a member's bytes start."""

    suffix = "tar"

    def __init__(self, file: BinaryIO, capacity: int) -> None:
        self._file = file

    def add(self, key: str, label: int, image: StoredImage) -> Payload:
        """The image's bytes go in untouched; `.cls` holds the class number in ASCII."""
        members = {f"{key}.{image.suffix}": image.file, f"{key}.cls": str(label).encode()}
        offsets = {name: self._append(name, content) for name, content in sorted(members.items())}
        return Payload(offsets[f"{key}.{image.suffix}"], image.file, ENCODED)

    def finish(self) -> None:
        """Two empty blocks end a tar, padded to a whole record as tar tools do."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))

    def _append(self, name: str, content: bytes) -> int:
        header = tarfile.TarInfo(name)  # owner, group and time stay zero: bytes depend on content only
        header.size = len(content)
        self._file.write(header.tobuf(tarfile.GNU_FORMAT))
        offset = self._file.tell()
        self._file.write(content)
        self._file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset
