"""Record of a source's contents as it was prepared: a file that changes later under the same name isn't missed.

The record has size and modification time of every file, and the SHA-256 of annotation documents. A file with another
time is read and compared by content, so that a copied or touched source is no other source.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data_prep.dataset.checksums import annotated_hash, content_hash
from data_prep.dataset.index import read_index
from data_prep.errors import RejectedSample
from data_prep.sources import AnnotatedSource, FileSource, SampleRef, Source
from data_prep.storage.files import sha256_file, write_atomically
from data_prep.storage.json_files import DamagedJson, read_json

CONTENTS_NAME = "source.json"
_SHOWN = 3


class _Recorded(BaseModel):
    """As it is written beside the manifest."""

    model_config = ConfigDict(frozen=True)

    documents: dict[str, str]
    stamps: str
    """Little-endian int64, base64."""


@dataclass(frozen=True)
class Contents:
    """Of a source's files, by sample in the order of the plan's shards."""

    documents: dict[str, str]
    """SHA-256 by path."""
    stamps: NDArray[np.int64]
    """Shape (samples,): of size and modification time of a sample's files; 0 where it has none."""

    def changed_documents(self, now: Contents) -> list[str]:
        """Those that have another content by now, or are gone."""
        return [path for path, sha256 in self.documents.items() if now.documents.get(path) != sha256]

    def differs(self, now: Contents) -> str:
        """How many samples' files and which documents have changed, in words, or ''."""
        count = int((self.stamps != now.stamps).sum())
        return ", ".join([f"{count:,} files of the source"] * bool(count) + self.changed_documents(now))

    def write(self, output: Path) -> None:
        """Keep them beside the dataset's manifest; nothing where no file belongs to a sample.

        Raises:
            OSError: the storage refuses.
        """
        if not self.documents and not self.stamps.any():
            return
        stamps = b64encode(self.stamps.astype("<i8").tobytes()).decode()
        recorded = _Recorded(documents=self.documents, stamps=stamps)
        write_atomically(output / CONTENTS_NAME, recorded.model_dump_json().encode())


def _kept(output: Path) -> Contents | None:
    """Returns the record that `write` kept; None where an older release or a copy kept none, or where it is damaged."""
    try:
        recorded = read_json(output / CONTENTS_NAME, _Recorded)
        return Contents(recorded.documents, np.frombuffer(b64decode(recorded.stamps), "<i8"))
    except (OSError, ValueError, DamagedJson):
        return None


def contents_of(
    source: Source, samples: Iterable[Sequence[SampleRef]], documents: Iterable[Path]
) -> Contents:
    """Look at every file once, without reading it, and read the documents.

    Args:
        source: the source.
        samples: of shards or splits, in the order of the plan.
        documents: the listing's.

    Raises:
        OSError: a document can't be read.
    """
    stamp = _Stamps(source)
    stamps = [stamp(ref) for refs in samples for ref in refs]
    return Contents({str(path): sha256_file(path) for path in documents}, np.array(stamps, np.int64))


class _Stamps:
    """Stamps of samples; a file that holds many samples is asked for once."""

    def __init__(self, source: Source) -> None:
        self._files = source.files if isinstance(source, FileSource) else None
        self._last: tuple[Sequence[str], int] = ((), 0)

    def __call__(self, ref: SampleRef) -> int:
        files = self._files(ref) if self._files else ()
        if files != self._last[0]:
            stamps = repr([_stamp(file) for file in files]).encode()
            self._last = (files, int.from_bytes(xxhash.xxh3_64_digest(stamps), signed=True))
        return self._last[1]


def _stamp(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)  # noqa: PTH116 (a Path a file takes longer than the look)
    except OSError:
        return (-1, 0)
    return (found.st_size, found.st_mtime_ns)


def changes(
    output: Path, now: Contents, source: Source, shards: Sequence[tuple[Path, Sequence[SampleRef]]]
) -> str:
    """Returns a text on what has changed in the source since the dataset at `output` was prepared from it, or ''.

    Samples with another time and the same content are noted, and not read again next time.

    Args:
        output: the dataset's folder.
        now: the source's present contents.
        source: the source.
        shards: index and samples of each shard, in the order of the contents.
    """
    before = _kept(output)
    if before is None:
        return ""
    if documents := before.changed_documents(now):
        return f"{documents[0]} has another content now"
    if before.stamps.shape != now.stamps.shape:
        return ""
    suspects, changed = set(np.flatnonzero(before.stamps != now.stamps).tolist()), list[str]()
    if not suspects:
        return ""
    place = 0
    for index, refs in shards:
        near = [ref for at, ref in enumerate(refs, place) if at in suspects]
        place += len(refs)
        changed += _changed(source, index, near) if near else []
    if changed:
        more = ", ..." if len(changed) > _SHOWN else ""
        return f"{len(changed):,} files of the source have changed since: {', '.join(changed[:_SHOWN])}{more}"
    with suppress(OSError):
        now.write(output)
    return ""


def _changed(source: Source, index: Path, refs: Sequence[SampleRef]) -> Iterator[str]:
    """The locations of samples that aren't what the shard was made of."""
    found = read_index(index) if index.is_file() else None
    hashes = {} if found is None else dict(zip(found.keys.to_pylist(), found.source_hash, strict=True))
    for ref in refs:
        stored = hashes.get(ref.key)
        if stored is None or stored.tobytes() != _hash(source, ref):  # a rejected one may be good by now
            yield ref.location.partition("#")[0]


def _hash(source: Source, ref: SampleRef) -> bytes | None:
    try:
        content = source.read(ref)
        if not isinstance(content, bytes):
            return None
        found = content_hash(content)
        return annotated_hash(found, source.annotation(ref)) if isinstance(source, AnnotatedSource) else found
    except (OSError, RejectedSample, ValueError):
        return None
