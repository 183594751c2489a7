"""Hashes that say what a dataset is: per sample and for the whole of it.

The dataset digest covers classes and, split by split in stored order, every sample's key, label and source
content: that of the image and, where the task has them, of its annotation. It depends neither on the format,
nor on where shards are cut, nor on the machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_prep.dataset.index import ShardIndex

_SCHEMA_TAG = b"convmlp-dataset-1"


def content_hash(content: bytes) -> bytes:
    """XXH3-128 of an original image file, 16 bytes."""
    return xxhash.xxh3_128_digest(content)


def pixel_hash(pixels: NDArray[np.uint8]) -> bytes:
    """XXH3-128 of a source's raw pixels, shape (height, width) or (height, width, 3), 16 bytes."""
    shape = struct.pack("<3I", *pixels.shape, *[1] * (3 - pixels.ndim))
    return xxhash.xxh3_128_digest(shape + np.ascontiguousarray(pixels).tobytes())


def annotated_hash(image_hash: bytes, annotation: bytes) -> bytes:
    """Hash of an image with its annotation, 16 bytes: XXH3-128 of the image's hash and the annotation's."""
    return xxhash.xxh3_128_digest(image_hash + xxhash.xxh3_128_digest(annotation))


def payload_checksum(payload: bytes | memoryview) -> int:
    """XXH3-64 of a sample's bytes as stored."""
    return xxhash.xxh3_64_intdigest(payload)


def order_key(seed: int, key: str) -> bytes:
    """Sort key of a sample: a keyed BLAKE2b of its name, so that order is a pure function of (seed, names).

    No random generator is involved whose stream could change between numpy releases.
    """
    return hashlib.blake2b(key.encode(), digest_size=16, key=seed.to_bytes(8, "little")).digest()


def dataset_digest(
    classes: Sequence[str], splits: Mapping[str, Iterable[ShardIndex]], *, num_turned: int = 0
) -> str:
    """`sha256:...` over classes and all samples.

    Args:
        classes: class names, by label.
        splits: for each split, the indexes of its shards in order (of any one format).
        num_turned: images that are turned upright. The same files taken as they are stored are another dataset.
    """
    digest = hashlib.sha256(_SCHEMA_TAG)
    digest.update(struct.pack("<Q", len(classes)))
    for name in classes:
        digest.update(_text(name))
    for split in sorted(splits):
        digest.update(_text(split))
        count = 0
        for index in splits[split]:
            labels = index.label.tolist()
            hashes = index.source_hash.tobytes()
            for i, (key, label) in enumerate(zip(index.keys.to_pylist(), labels, strict=True)):
                digest.update(_text(key) + struct.pack("<i", label) + hashes[16 * i : 16 * (i + 1)])
            count += len(index)
        digest.update(struct.pack("<Q", count))
    if num_turned:
        digest.update(_text("turned upright") + struct.pack("<Q", num_turned))
    return f"sha256:{digest.hexdigest()}"


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<I", len(encoded)) + encoded
