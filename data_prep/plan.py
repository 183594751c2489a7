"""The plan of a data-prep job: the order of samples, where shards are cut, and a digest of both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import PIL

from data_prep.config import PrepareConfig
from data_prep.digest import order_key
from data_prep.errors import DataPrepError
from data_prep.images import Steps
from data_prep.shard import ShardTask
from data_prep.sources import Listing, SampleRef

_WRITER_VERSION = 1
"""Raise it when the bytes of shards change: unfinished work of older releases is then done again."""


@dataclass(frozen=True)
class Plan:
    """What a job will write."""

    classes: list[str]
    tasks: list[ShardTask]
    """The shards of all splits, in order."""
    num_samples: int
    listing: str
    """Digest of the source's classes and samples by name."""
    digest: str
    """Digest of all that decides the bytes of the shards."""


def make_plan(config: PrepareConfig, listing: Listing) -> Plan:
    """Order and cut a listing; `config` holds absolute paths.

    Raises:
        DataPrepError: two samples of a split share a key.
    """
    ordered = {
        split: sorted(refs, key=lambda ref: (order_key(config.shuffle_seed, ref.key), ref.key))
        for split, refs in sorted(listing.splits.items())
    }
    for split, refs in ordered.items():
        _expect_unique_keys(split, refs)
    listed = _listing_digest(listing.classes, ordered)
    digest = _plan_digest(config, listed)
    statistics_split = "train" if "train" in ordered else next(iter(ordered))
    tasks = [
        task
        for split, refs in ordered.items()
        for task in _cut(
            config, split, refs, digest, config.statistics_images if split == statistics_split else 0
        )
    ]
    return Plan(listing.classes, tasks, sum(map(len, ordered.values())), listed, digest)


def recorded_settings(config: PrepareConfig) -> dict[str, Any]:
    """The settings that decide a dataset's content, as its manifest records them."""
    output = config.output
    return {
        "formats": sorted(output.formats),
        "samples_per_shard": output.samples_per_shard,
        "resize": output.resize.model_dump() if output.resize else None,
        "shuffle_seed": config.shuffle_seed,
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
    config: PrepareConfig, split: str, refs: list[SampleRef], digest: str, statistics_images: int
) -> list[ShardTask]:
    size = config.output.samples_per_shard
    formats = tuple(sorted(config.output.formats))
    return [
        ShardTask(
            output=config.output.path,
            split=split,
            number=number,
            refs=tuple(refs[start : start + size]),
            source=config.source,
            formats=formats,
            steps=Steps(config.output.resize, validate=config.validate_images, for_ffcv="ffcv" in formats),
            statistics_images=max(0, statistics_images - start),
            plan=digest,
        )
        for number, start in enumerate(range(0, len(refs), size))
    ]


def _listing_digest(classes: list[str], splits: dict[str, list[SampleRef]]) -> str:
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split, refs in splits.items():
        digest.update(f"\n{split} {len(refs)}\n".encode())
        for ref in refs:
            digest.update(
                "\0".join((ref.key, str(ref.label), ref.location, "")).encode(errors="surrogateescape")
            )
    return digest.hexdigest()


def _plan_digest(config: PrepareConfig, listing: str) -> str:
    content = {
        "writer": _WRITER_VERSION,
        "pillow": PIL.__version__,  # its encoders make the bytes of PNG and resized JPEG files
        "source": config.source.model_dump(mode="json"),
        "settings": recorded_settings(config),
        "listing": listing,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
