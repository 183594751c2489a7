"""One shard of one format as it lies on disk, trusted only as far as checksums go: the ground repair stands on.

Replacing a file by exactly what it ought to be, or not at all.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.dataset.checksums import annotated_hash, content_hash, payload_checksum, pixel_hash
from data_prep.dataset.index import ENCODED, IndexRow, ShardIndex, read_index
from data_prep.dataset.manifest import ShardInfo, Task
from data_prep.errors import DataPrepError
from data_prep.images.check_image import Steps, store_image
from data_prep.images.image_file import open_image
from data_prep.sources.archives.tar_members import TarMember, tar_members
from data_prep.storage.files import TEMP_PREFIX, sha256_file, sync_folder
from data_prep.writers.ffcv_writer import MODE_OF_ENCODING, read_beton
from data_prep.writers.webdataset_writer import ANNOTATION_SUFFIX


def replace_if_same(path: Path, sha256: str, write: Callable[[Path], None]) -> bool:
    """Let `write` fill a temporary neighbour, which takes the name `path` if it has the hex SHA-256 that is wanted.

    Otherwise `path` stays as it is, and False is returned.
    """
    temporary = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        if sha256_file(temporary) != sha256:
            return False
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


ENCODING_OF_MODE = {mode: encoding for encoding, mode in MODE_OF_ENCODING.items()}
HEADERS_ONLY = Steps(resize=None, validate="headers", for_ffcv=False)


class Facts(NamedTuple):
    """Facts about a sample that are known in every format."""

    key: str
    label: int
    height: int
    width: int
    source_hash: bytes


class StoredShard:
    """A shard file and its index; `refresh` looks at both again.

    `file_ok` and `index` say what has the manifest's SHA-256. Payloads are given out only if they have the
    index's checksum, also those of a damaged file.
    """

    def __init__(self, folder: Path, task: Task, format_name: str, info: ShardInfo) -> None:
        self.folder, self.task, self.format, self.info = folder, task, format_name, info
        self.file_ok = False
        self.index: ShardIndex | None = None

    @property
    def ok(self) -> bool:
        """Both files are what the manifest says."""
        return self.file_ok and self.index is not None

    def refresh(self) -> None:
        """Hash both files."""
        self.file_ok = _has(self.folder / self.info.file, self.info.sha256)
        intact = _has(self.folder / self.info.index, self.info.index_sha256)
        self.index = read_index(self.folder / self.info.index) if intact else None

    def image(self, position: int) -> tuple[bytes, int] | None:
        """The payload of a sample's image and its encoding, None where they are damaged."""
        if self.index is None:
            return None
        row = self.index.row(position)
        payload = self._payload(row.offset, row.length, row.checksum)
        return None if payload is None else (payload, row.encoding)

    def annotation(self, position: int) -> bytes | None:
        """The sample's annotation, None where it is damaged."""
        if self.index is None:
            return None
        row = self.index.row(position)
        return self._payload(row.annotation_offset, row.annotation_length, row.annotation_checksum)

    def facts(self) -> list[Facts] | None:
        """Returns the facts that the index has of the samples; None without an index."""
        if self.index is None:
            return None
        rows = map(self.index.row, range(len(self.index)))
        return [Facts(row.key, row.label, row.height, row.width, row.source_hash) for row in rows]

    def _payload(self, offset: int, length: int, checksum: int) -> bytes | None:
        try:
            with (self.folder / self.info.file).open("rb") as file:
                payload = os.pread(file.fileno(), length, offset)
        except OSError:
            return None
        return payload if len(payload) == length and payload_checksum(payload) == checksum else None


def index_rows(shard: StoredShard, facts: list[Facts] | None) -> list[IndexRow] | None:
    """The index of an intact shard file, read from the file's own tables.

    Args:
        shard: its file is intact.
        facts: of the samples, from another format's index; a tar holds all but the source's hashes itself.

    Returns:
        The rows; None where they can't be known.

    Raises:
        DataPrepError: the tar is none that data preparation has written.
    """
    path = shard.folder / shard.info.file
    if shard.format == "webdataset":
        try:
            return _rows_of_tar(path, shard.task, facts)
        except (KeyError, ValueError) as error:  # its checksum is right, so it was written so
            raise DataPrepError(f"{path} is not the tar of a dataset: {error}") from None
    return None if facts is None else _rows_of_beton(path, shard.task, facts)


def guess_source_hashes(rows: list[IndexRow], path: Path, *, pixels: bool) -> list[IndexRow]:
    """Rows with the hashes their sources would have if files passed through unchanged, or came as pixels."""
    guessed = []
    with path.open("rb") as file:
        for row in rows:
            content = os.pread(file.fileno(), row.length, row.offset)
            found = pixel_hash(np.asarray(open_image(content)[0])) if pixels else content_hash(content)
            if row.annotation_length:
                annotation = os.pread(file.fileno(), row.annotation_length, row.annotation_offset)
                found = annotated_hash(found, annotation)
            guessed.append(row._replace(source_hash=found))
    return guessed


def _rows_of_tar(path: Path, task: Task, facts: list[Facts] | None) -> list[IndexRow]:
    known = {fact.key: fact for fact in facts or ()}
    ending = f".{ANNOTATION_SUFFIX.get(task, 'cls')}"
    rows = []
    with path.open("rb") as file:

        def read(member: TarMember) -> bytes:
            return os.pread(file.fileno(), member.size, member.offset)

        members = {member.name: member for member in tar_members(file.fileno(), str(path))}
        for name, member in members.items():
            if name.endswith(ending):
                continue
            key, content = name.rpartition(".")[0], read(member)
            other = members[key + ending]
            annotation = b"" if task == "classification" else read(other)
            row = IndexRow(
                key=key,
                offset=member.offset,
                length=member.size,
                label=int(read(other)) if task == "classification" else -1,
                checksum=payload_checksum(content),
                encoding=ENCODED,
                height=0,
                width=0,
                source_hash=bytes(16),
                annotation_offset=other.offset if annotation else 0,
                annotation_length=len(annotation),
                annotation_checksum=payload_checksum(annotation) if annotation else 0,
            )
            fact = known.get(key)
            if fact is None:
                stored = store_image(content, HEADERS_ONLY, histogram=False)
                row = row._replace(height=stored.height, width=stored.width)
            else:
                row = row._replace(**fact._asdict())
            rows.append(row)
    return rows


def _rows_of_beton(path: Path, task: Task, facts: list[Facts]) -> list[IndexRow]:
    rows = []
    with path.open("rb") as file:
        for fact, sample in zip(facts, read_beton(path, task), strict=True):
            offset, length = int(sample["offset"]), int(sample["length"])
            start, size = int(sample["annotation_offset"]), int(sample["annotation_length"])
            annotation = os.pread(file.fileno(), size, start)
            rows.append(
                IndexRow(
                    **fact._asdict(),
                    offset=offset,
                    length=length,
                    checksum=payload_checksum(os.pread(file.fileno(), length, offset)),
                    encoding=ENCODING_OF_MODE[int(sample["mode"])],
                    annotation_offset=start,
                    annotation_length=size,
                    annotation_checksum=payload_checksum(annotation) if size else 0,
                )
            )
    return rows


def _has(path: Path, sha256: str) -> bool:
    try:
        return sha256_file(path) == sha256
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DataPrepError(f"{path} can't be read: {error.strerror or error}") from None
