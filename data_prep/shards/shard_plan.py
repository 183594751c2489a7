"""The plan of a data-prep job: the order of samples, where shards are cut, and a digest of both.

A dataset of some of a source's samples: for trials, and for learning a few images by heart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from data_prep.config import ACQUISITION_FIELDS, PrepareConfig, exif_orientation
from data_prep.dataset.checksums import order_key
from data_prep.dataset.manifest import Task
from data_prep.errors import DataPrepError
from data_prep.images.check_image import Steps
from data_prep.shards.fill import ShardSamples
from data_prep.shards.shard import ShardTask
from data_prep.shards.source_contents import Contents, contents_of
from data_prep.sources import Listing, SampleRef, Source

Keep = Mapping[str, int | tuple[str, ...]]
"""Split → how many of its samples, the first by key, or which ones, by key."""

_SHOWN = 3


def kept(listing: Listing, keep: Keep) -> Listing:
    """The listing with only the samples that `keep` names; a split that it doesn't name keeps all of them.

    Raises:
        DataPrepError: the source has no such split or key.
    """
    if unknown := sorted(keep.keys() - listing.splits.keys()):
        raise DataPrepError(
            f"keep.{unknown[0]}: the source has no such split, only {', '.join(sorted(listing.splits))}"
        )
    splits = {split: _chosen(split, refs, keep.get(split)) for split, refs in listing.splits.items()}
    return replace(listing, splits=splits)


def _chosen(
    split: str, refs: Sequence[SampleRef], wanted: int | tuple[str, ...] | None
) -> Sequence[SampleRef]:
    if wanted is None:
        return refs
    if isinstance(wanted, int):
        return sorted(refs)[:wanted]
    by_key = {ref.key: ref for ref in refs}
    if missing := [key for key in wanted if key not in by_key]:
        shown = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
        raise DataPrepError(
            f"keep.{split}: {len(missing)} of the {len(wanted)} keys are not among the source's {len(refs):,} samples: "
            f"{shown}; a key is a file's name without its ending"
        )
    return [by_key[key] for key in sorted(wanted)]


_WRITER_VERSION = 3
"""Raise it when the bytes of shards change: unfinished work of older releases is then done again."""


@dataclass(frozen=True)
class Plan:
    """The dataset that a job will write."""

    classes: list[str]
    task: Task
    class_ids: list[int] | None
    tasks: list[ShardTask]
    """The shards of all splits, in order."""
    num_samples: int
    notes: tuple[str, ...]
    """Notes of the source's listing beside its samples."""
    source: Source
    contents: Contents
    """Contents of the source as it was listed."""
    listing: str
    """Digest of the source's classes and samples by name."""
    digest: str
    """Digest of all that decides the bytes of the shards."""


def make_plan(config: PrepareConfig, source: Source, listing: Listing) -> Plan:
    """Order and cut a listing of the source; `config` holds absolute paths.

    Raises:
        DataPrepError: two samples of a split share a key, `keep` names none of the source's, or images with boxes are
            to be resized.
    """
    listing = kept(listing, config.keep)
    if listing.task == "detection" and config.output.resize:
        raise DataPrepError(
            "output.resize: the published boxes would no longer fit the images; leave it out: detection scales "
            "images and boxes together while training"
        )
    ordered = {
        split: sorted(refs, key=lambda ref: (order_key(config.shuffle_seed, ref.key), ref.key))
        for split, refs in sorted(listing.splits.items())
    }
    for split, refs in ordered.items():
        _expect_unique_keys(split, refs)
    listed = _listing_digest(listing, ordered)
    contents = contents_of(source, ordered.values(), listing.documents)
    digest = _plan_digest(config, listed, contents.documents)
    statistics_split = "train" if "train" in ordered else next(iter(ordered))
    tasks, place = list[ShardTask](), 0
    for split, refs in ordered.items():
        stamps = contents.stamps[place : place + len(refs)]
        place += len(refs)
        tasks += _cut(config, listing.task, split, refs, digest, stamps, statistics=split == statistics_split)
    count = sum(map(len, ordered.values()))
    return Plan(
        listing.classes,
        listing.task,
        listing.class_ids,
        tasks,
        count,
        listing.notes,
        source,
        contents,
        listed,
        digest,
    )


def recorded_settings(config: PrepareConfig) -> dict[str, Any]:
    """The settings that decide a dataset's content, as its manifest records them."""
    output = config.output
    return {
        "formats": sorted(output.formats),
        "samples_per_shard": output.samples_per_shard,
        "resize": output.resize.model_dump() if output.resize else None,
        "shuffle_seed": config.shuffle_seed,
        "keep": config.model_dump(mode="json", include={"keep"})["keep"] or None,
        "validate_images": config.validate_images,
        "statistics_images": config.statistics_images,
    }


def _expect_unique_keys(split: str, refs: list[SampleRef]) -> None:
    for first, second in pairwise(refs):
        if first.key == second.key:
            raise DataPrepError(
                f"split {split!r} has two samples named {first.key}: {first.location} and {second.location}"
            )


def _cut(
    config: PrepareConfig,
    task: Task,
    split: str,
    refs: list[SampleRef],
    digest: str,
    stamps: NDArray[np.int64],
    *,
    statistics: bool,
) -> list[ShardTask]:
    """The shards of a split. What an interrupted job has finished is kept by shard: while its files are the same."""
    size = config.output.samples_per_shard
    formats = tuple(sorted(config.output.formats))
    steps = Steps(
        config.output.resize,
        validate=config.validate_images,
        for_ffcv="ffcv" in formats,
        exif_orientation=exif_orientation(config.source),
    )
    chosen = _spread(config.statistics_images if statistics else 0, len(refs))
    tasks = []
    for number, start in enumerate(range(0, len(refs), size)):
        first, last = np.searchsorted(chosen, (start, start + size))
        own = frozenset((chosen[first:last] - start).tolist())
        samples = ShardSamples(task, split, tuple(refs[start : start + size]), config.source, steps, own)
        of_files = hashlib.sha256(digest.encode() + stamps[start : start + size].astype("<i8").tobytes())
        tasks.append(ShardTask(config.output.path, number, samples, formats, of_files.hexdigest()))
    return tasks


def _spread(count: int, total: int) -> NDArray[np.int64]:
    """`count` positions below `total` (or all of them), evenly: no shard has much more to decode than another."""
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // max(1, count)


def _listing_digest(listing: Listing, splits: dict[str, list[SampleRef]]) -> str:
    head = [listing.task, listing.classes, listing.class_ids]
    digest = hashlib.sha256(json.dumps(head).encode())
    for split, refs in splits.items():
        digest.update(f"\n{split} {len(refs)}\n".encode())
        for ref in refs:
            digest.update(
                "\0".join((ref.key, str(ref.label), ref.location, "")).encode(errors="surrogateescape")
            )
    return digest.hexdigest()


def encoder_versions() -> dict[str, str]:
    """The releases that decide bytes: Pillow encodes PNG and filters, simplejpeg encodes resized images."""
    return {"pillow": PIL.__version__, "simplejpeg": version("simplejpeg")}


def _plan_digest(config: PrepareConfig, listing: str, documents: dict[str, str]) -> str:
    excluded = set(ACQUISITION_FIELDS)
    if exif_orientation(config.source) == "ignore":  # as work that older releases began has it
        excluded.add("exif_orientation")
    content = {
        "writer": _WRITER_VERSION,
        **encoder_versions(),
        "source": config.source.model_dump(mode="json", exclude=excluded),
        "settings": recorded_settings(config),
        "listing": listing,
        "documents": documents,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
