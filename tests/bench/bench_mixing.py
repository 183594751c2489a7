"""How well the sample order mixes, beside a full permutation and webdataset's own shuffle.

    python tests/bench/bench_mixing.py

131,072 samples of 1,000 classes in 128 shards. `sorted`: they lie on disk class after class, the worst case.
`prepared`: as data_prep lays them out, in a keyed order. One epoch is drawn in each order and measured by

distance moved      mean |place in the epoch - place on disk| / samples; 1/3 for a random permutation
label correlation   chance that two samples up to 64 places apart share a class, beyond that of random places (0 = none)
classes in a batch  distinct classes among 256 consecutive samples, as a share of what random places give
neighbours parted   share of disk neighbours that are not in the same batch of 256
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from webdataset import filters

from convmlp_platform.data.sample_order import SampleOrder

SAMPLES, CLASSES, SHARDS, BATCH, LAGS = 1 << 17, 1000, 128, 256, 64
Order = NDArray[np.int64]


def ours(num_streams: int, window: int) -> Order:
    """One epoch as the trainer takes it: the next samples of each stream make a global batch."""
    order = SampleOrder(SAMPLES, num_streams, seed=1, window=window)
    return np.concatenate([order.step_samples(step, BATCH)[1] for step in range(SAMPLES // BATCH)])


def permutation() -> Order:
    """Every order equally likely; needs random access to single samples."""
    return np.random.default_rng(1).permutation(SAMPLES)


def webdataset(shuffle: int) -> Order:
    """webdataset's own filters: shards in random order, then a buffer of `shuffle` samples, one reader."""
    per_shard = SAMPLES // SHARDS
    shards = filters._shuffle(iter(range(SHARDS)), bufsize=SHARDS, initial=SHARDS, seed=1)
    samples = (shard * per_shard + i for shard in shards for i in range(per_shard))
    return np.fromiter(filters._shuffle(samples, bufsize=shuffle, initial=shuffle, seed=2), np.int64)


def measure(order: Order, labels: NDArray[np.int64]) -> tuple[float, float, float, float]:
    """Distance moved, label correlation, classes in a batch, neighbours parted (see above)."""
    drawn = labels[order]
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    chance = (np.bincount(labels) / len(labels)) @ (np.bincount(labels) / len(labels))
    same = np.mean([(drawn[lag:] == drawn[:-lag]).mean() for lag in range(1, LAGS + 1)])
    batches = drawn[: len(drawn) // BATCH * BATCH].reshape(-1, BATCH)
    distinct = np.mean([len(np.unique(batch)) for batch in batches])
    random = np.random.default_rng(0).choice(labels, (200, BATCH))
    expected = np.mean([len(np.unique(batch)) for batch in random])
    return (
        float(np.abs(place - np.arange(len(order))).mean() / len(order)),
        float((same - chance) / (1 - chance)),
        float(distinct / expected),
        float((place[1:] // BATCH != place[:-1] // BATCH).mean()),
    )


def rows(layouts: tuple[str, ...] = ("sorted", "prepared")) -> list[tuple[str, str, tuple[float, ...]]]:
    """(layout, order, figures) of all contestants."""
    sorted_labels = np.arange(SAMPLES) * CLASSES // SAMPLES
    contestants: dict[str, Callable[[], Order]] = {
        "on disk": lambda: np.arange(SAMPLES),
        "full permutation": permutation,
        "ours, 8 streams": lambda: ours(8, 4096),
        "ours, 64 streams": lambda: ours(64, 4096),
        "ours, 8 streams, window 1024": lambda: ours(8, 1024),
        "webdataset, shuffle(1000)": lambda: webdataset(1000),
        "webdataset, shuffle(5000)": lambda: webdataset(5000),
    }
    labels = {"sorted": sorted_labels, "prepared": np.random.default_rng(3).permutation(sorted_labels)}
    return [
        (layout, name, measure(make(), labels[layout]))
        for layout in layouts
        for name, make in contestants.items()
    ]


def table() -> str:
    """The figures as Markdown."""
    lines = [
        "| on disk | order of the epoch | distance moved | label correlation | classes in a batch | neighbours parted |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|")
    for layout, name, (distance, correlation, classes, parted) in rows():
        lines.append(
            f"| {layout} | {name} | {distance:.3f} | {correlation:+.4f} | {classes:.3f} | {parted:.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(table())
