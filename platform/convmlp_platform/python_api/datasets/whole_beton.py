"""All samples of a split as one .beton file: FFCV's Loader reads one file, and turns no image.

The file is made of the split's .beton shards, each payload compared with its checksum. A JPEG that is to be turned
becomes RGB pixels, upright; all else keeps its bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from convmlp_platform.data.dataset.split import ReadPayload, ShardedSplit
from convmlp_platform.errors import DataError
from data_prep import console
from data_prep.dataset.index import ENCODED, RAW_RGB
from data_prep.images.orientation import UPRIGHT
from data_prep.storage.files import atomic_file
from data_prep.storage.locks import Held, holding
from data_prep.storage.urls import is_url
from data_prep.writers.ffcv_writer import FfcvWriter

if TYPE_CHECKING:
    from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset

_READ_TOGETHER = 64
_DIGITS = 16
_PATIENCE_S = 3600.0
"""For another process that writes the file."""


def beton_of(dataset: PreparedDataset) -> Path:
    """A .beton file with all samples of the split, upright: its only shard, or one in the cache folder, which is
    written where it isn't there yet.

    Args:
        dataset: has .beton shards.

    Raises:
        DataError: a sample is damaged, or the file can't be written.
    """
    manifest = dataset.manifest
    shards = manifest.splits[dataset.split].formats["ffcv"]
    if len(shards) == 1 and not is_url(dataset.path) and not manifest.num_turned:
        return Path(dataset.path) / shards[0].file
    digest = manifest.digest.removeprefix("sha256:")[:_DIGITS]
    target = (dataset.cache_dir / "ffcv" / f"{manifest.name}-{dataset.split}-{digest}.beton").absolute()
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with holding(target.with_suffix(".lock"), patience=_PATIENCE_S):
            if not target.exists():
                _write(dataset, target)
    except Held as held:
        raise DataError(f"{target} is being written by {held} for more than an hour") from None
    except OSError as error:
        raise DataError(
            f"cache_dir: {target} can't be written: {error.strerror or error}; name another folder: "
            "open_dataset(..., cache_dir=...)"
        ) from error
    return target


def _write(dataset: PreparedDataset, target: Path) -> None:
    split = dataset.in_format("ffcv", read_together=_READ_TOGETHER)
    stored = sum(shard.bytes for shard in split.shards)
    if (free := shutil.disk_usage(target.parent).free) < stored:
        raise DataError(
            f"cache_dir: {target.parent} has {console.stored_size(free)} free, but the split's "
            f"{console.stored_size(stored)} are to be written there as one file for FFCV: name another "
            "folder: open_dataset(..., cache_dir=...)"
        )
    console.say(f"ffcv: writing the {len(split):,} images of {split.name} as one file, once")
    with atomic_file(target) as file:
        writer = FfcvWriter(file, len(split), dataset.manifest.task)
        turned = sum(_add(split, sample, writer) for sample in range(len(split)))
        writer.finish()
    also = f", {turned:,} of them turned upright" if turned else ""
    console.say(f"ffcv: {target}, {console.stored_size(target.stat().st_size)}{also}")


def _add(split: ShardedSplit, sample: int, writer: FfcvWriter) -> bool:
    """Append a sample; returns whether it was turned."""
    payload = split.payload(sample)
    annotation = None if split.manifest.task == "classification" else split.annotation(sample)
    turned = payload.encoding == ENCODED and payload.orientation != UPRIGHT
    content, encoding = _upright(split, payload) if turned else (bytes(payload.content), payload.encoding)
    writer.add_payload(
        split.key(sample), payload.label, content, encoding, (payload.height, payload.width), annotation
    )
    return turned


def _upright(split: ShardedSplit, payload: ReadPayload) -> tuple[bytes, int]:
    try:
        return payload.pixels().tobytes(), RAW_RGB
    except (OSError, ValueError) as error:
        raise split.damaged(payload.sample, f"it can't be decoded ({error})") from None
