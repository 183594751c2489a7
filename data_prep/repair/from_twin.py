"""A damaged shard made anew from what is intact in the same shard's files, of any format, by the real writers.

A JPEG that passed through is the same bytes in both formats; `.beton`'s raw pixels are decoded from the tar's file;
the tar's PNG is encoded from raw pixels where that gives the recorded bytes. Samples may come from different files:
two damaged files mend each other as long as no sample is damaged in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep.console import some_of
from data_prep.dataset.checksums import payload_checksum
from data_prep.dataset.index import ENCODED, RAW_RGB, write_index
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import RejectedSample
from data_prep.images.check_image import Steps, StoredImage, store_image
from data_prep.repair.stored_shard import (
    HEADERS_ONLY,
    Facts,
    StoredShard,
    guess_source_hashes,
    index_rows,
    replace_if_same,
)
from data_prep.writers import WRITERS
from data_prep.writers.ffcv_writer import metadata_start, sample_type

_WITH_PIXELS = Steps(resize=None, validate="headers", for_ffcv=True)
_SHOWN = 3


class NotPossible(Exception):
    """These files don't hold what is needed; the message says what is missing."""


def rebuild_file(target: StoredShard, group: Sequence[StoredShard], manifest: DatasetManifest) -> None:
    """Replace a damaged shard file by one of the manifest's SHA-256.

    Args:
        target: the shard of `group` to rebuild.
        group: the same shard in all formats.
        manifest: the dataset's.

    Raises:
        NotPossible: nothing was changed.
        OSError: the file can't be written.
    """
    facts = next((found for shard in (target, *group) if (found := shard.facts()) is not None), None)
    if facts is None:
        raise NotPossible("no index of this shard is intact in any format")
    path = target.folder / target.info.file
    for capacity in _capacities(target, manifest, len(facts)):

        def write(temporary: Path, capacity: int = capacity) -> None:
            _write(temporary, target, group, facts, capacity)

        if replace_if_same(path, target.info.sha256, write):
            return
    raise NotPossible(
        "made anew from the intact samples it is not the same file: a release of Pillow other than "
        f"{manifest.preprocessing.get('pillow', 'the one here')} decodes or encodes images differently"
    )


def rebuild_index(target: StoredShard, group: Sequence[StoredShard], manifest: DatasetManifest) -> None:
    """Replace the damaged index of an intact shard file by one of the manifest's SHA-256.

    Raises:
        NotPossible: nothing was changed.
        OSError: the index can't be written.
    """
    twin = next((found for shard in group if (found := shard.facts()) is not None), None)
    rows = index_rows(target, twin)
    if rows is None:
        raise NotPossible("the other format's index is needed for the samples' names, and is not intact")
    candidates = [rows]
    if twin is None:
        if manifest.preprocessing.get("resize"):
            raise NotPossible("the hashes of the original images stand in no other file")
        file = target.folder / target.info.file
        candidates = [guess_source_hashes(rows, file, pixels=False)]
        if all(row.encoding == ENCODED for row in rows):
            candidates.append(guess_source_hashes(rows, file, pixels=True))
    path = target.folder / target.info.index
    for candidate in candidates:

        def write(temporary: Path, candidate: list = candidate) -> None:  # type: ignore[type-arg]
            write_index(temporary, candidate)

        if replace_if_same(path, target.info.index_sha256, write):
            return
    raise NotPossible("made anew from the shard file it is not the same index")


def _write(
    path: Path, target: StoredShard, group: Sequence[StoredShard], facts: Sequence[Facts], capacity: int
) -> None:
    missing: list[str] = []
    with path.open("w+b") as file:
        writer = WRITERS[target.format](file, capacity, target.task)
        for position, fact in enumerate(facts):
            image = _image(target, group, position, fact)
            annotation = _annotation(target, group, position)
            if image is None or annotation is None:
                missing.append(fact.key)
            elif not missing:
                writer.add(
                    fact.key, fact.label, image, None if target.task == "classification" else annotation
                )
        writer.finish()
    if missing:
        raise NotPossible(
            f"{'samples' if len(missing) > 1 else 'sample'} {some_of(missing, _SHOWN)} "
            "can't be had from the files that are left"
        )


def _annotation(target: StoredShard, group: Sequence[StoredShard], position: int) -> bytes | None:
    if target.task == "classification":
        return b""
    found = (shard.annotation(position) for shard in (target, *group))
    return next((annotation for annotation in found if annotation is not None), None)


def _image(
    target: StoredShard, group: Sequence[StoredShard], position: int, fact: Facts
) -> StoredImage | None:
    """The sample as the target's writer takes it, from the target's own intact payload or else another's."""
    steps = _WITH_PIXELS if target.format == "ffcv" else HEADERS_ONLY
    own = target.image(position)
    if own and own[1] == RAW_RGB:
        return _stored(b"", "", fact, *own)
    others = (shard.image(position) for shard in group if shard is not target)
    for payload, encoding in filter(None, (own, *others)):
        try:
            if encoding == ENCODED:
                return store_image(payload, steps, histogram=False)
            if encoding == RAW_RGB and (file := _png_of(target, position, payload, fact)):
                return _stored(file, "png", fact, file, ENCODED)
        except RejectedSample:
            continue
    return None


def _png_of(target: StoredShard, position: int, pixels: bytes, fact: Facts) -> bytes | None:
    """The tar's PNG file, encoded from RGB pixels, or from one channel where all three are the same."""
    if target.format != "webdataset":
        return None
    rgb = np.frombuffer(pixels, np.uint8).reshape(fact.height, fact.width, 3)
    candidates = [rgb]
    if (rgb == rgb[:, :, :1]).all():
        candidates.insert(0, rgb[:, :, 0])
    files = [store_image(candidate, HEADERS_ONLY, histogram=False).file for candidate in candidates]
    if target.index is None:
        return files[0]  # whether it is the right one shows in the SHA-256 of the whole
    checksum = int(target.index.checksum[position])
    return next((file for file in files if payload_checksum(file) == checksum), None)


def _stored(file: bytes, suffix: str, fact: Facts, payload: bytes, encoding: int) -> StoredImage:
    return StoredImage(
        file=file,
        suffix=suffix,
        height=fact.height,
        width=fact.width,
        source_hash=fact.source_hash,
        beton_payload=payload,
        beton_encoding=encoding,
        histogram=None,
        source_size=(fact.height, fact.width),
    )


def _capacities(target: StoredShard, manifest: DatasetManifest, num_samples: int) -> Iterator[int]:
    """How many samples the writer reserved room for: more than there are where some were rejected."""
    likely = [num_samples, manifest.preprocessing.get("samples_per_shard", num_samples)]
    if target.format == "ffcv" and target.index is not None:
        room = int(target.index.offset.min()) - metadata_start(target.task)
        likely.insert(0, max(num_samples, room // sample_type(target.task).itemsize))
    yield from dict.fromkeys(likely if target.format == "ffcv" else likely[:1])
