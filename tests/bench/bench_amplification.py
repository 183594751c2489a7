"""`make bench-data`, read amplification: what each of N nodes fetches in an epoch, beside its share of the dataset.

    python tests/bench/bench_amplification.py [--samples-per-shard N] [--kilobytes N]

Every node has a cache of its own and reads its rank's samples, all checked, over HTTP; the server counts
the bytes it sends.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

sys.path.insert(0, str(Path(__file__).parent.parent))

from web_server import WebServer, web_server

from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.sample_order import SampleOrder, share_of
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.storage import open_storage
from data_prep.dataset.index import ENCODED, IndexRow, write_index
from data_prep.dataset.manifest import DatasetManifest, ShardInfo, SplitInfo, write_manifest

NUM_SHARDS, NODES = 64, (1, 2, 4, 8)
MICRO_BATCHES, MICRO_BATCH = 16, 16
_TAR_HEADERS = bytes(1536)


@dataclass(frozen=True)
class Amplification:
    """Of N nodes: the bytes that the busiest fetched in an epoch, times N, over the dataset's; 1.0 is ideal."""

    nodes: int
    worst: float
    mean: float
    requests: int


def make_dataset(folder: Path, samples_per_shard: int, payload_bytes: int) -> DatasetManifest:
    """64 shards of random payloads of 0.5 to 1.5 times `payload_bytes`, spaced like a tar's members."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    shards = []
    for number in range(NUM_SHARDS):
        rows, content = [], bytearray()
        for at in range(samples_per_shard):
            payload = draw.bytes(int(draw.integers(payload_bytes // 2, payload_bytes * 3 // 2)))
            content += _TAR_HEADERS
            key, place = f"{number:02}-{at:05}", len(content)
            checksum = xxhash.xxh3_64_intdigest(payload)
            rows.append(IndexRow(key, place, len(payload), 0, checksum, ENCODED, 1, 1, bytes(16)))
            content += payload
        index = folder / f"train-{number:06}.index.arrow"
        write_index(index, rows)
        index.with_name(f"train-{number:06}.tar").write_bytes(content)
        shards.append(
            ShardInfo(
                file=f"train-{number:06}.tar",
                index=index.name,
                num_samples=len(rows),
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                index_sha256=hashlib.sha256(index.read_bytes()).hexdigest(),
            )
        )
    manifest = DatasetManifest(
        name="amplification",
        classes=["any"],
        splits={
            "train": SplitInfo(num_samples=NUM_SHARDS * samples_per_shard, formats={"webdataset": shards})
        },
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source={},
        preprocessing={},
        digest=f"sha256:{'0' * 64}",
    )
    write_manifest(manifest, folder)
    return manifest


def amplification(server: WebServer, nodes: int, scratch: Path) -> Amplification:
    """One epoch on `nodes` nodes, a rank each; every payload is read and checked."""
    url, manifest = server.url, open_manifest(server.url)
    total = sum(shard.bytes for shard in manifest.splits["train"].formats["webdataset"])
    fetched, requests = [], 0
    for rank in range(nodes):
        cache = CacheOptions(scratch / f"{nodes}-{rank}", 2 * total)
        storage = open_storage(url, manifest, "train", "webdataset", cache=cache)
        split = ShardedSplit(url, manifest, "train", "webdataset", storage=storage)
        server.reset()
        for samples in epoch_of(rank, nodes, len(split)):
            storage.ahead(samples)
            for sample in samples:
                split.payload(sample)
        fetched.append(server.body_bytes)
        requests += len(server.requests)
    return Amplification(nodes, max(fetched) * nodes / total, sum(fetched) / total, requests)


def epoch_of(rank: int, world_size: int, num_samples: int) -> Iterator[list[int]]:
    """The samples of a rank's micro-batches in the first epoch."""
    order, batch = SampleOrder(num_samples, MICRO_BATCHES, seed=1), MICRO_BATCHES * MICRO_BATCH
    share = share_of(rank, world_size, MICRO_BATCHES)
    for step in range(num_samples // batch):
        for number in share.numbers[: share.real]:
            yield order.step_samples(step, batch, number * MICRO_BATCH, MICRO_BATCH)[1].tolist()


def measure(samples_per_shard: int, payload_bytes: int) -> list[Amplification]:
    """The figures for 1, 2, 4 and 8 nodes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "dataset")
        make_dataset(folder, samples_per_shard, payload_bytes)
        with web_server(folder) as server:
            return [amplification(server, nodes, Path(scratch)) for nodes in NODES]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples-per-shard", type=int, default=300)
    parser.add_argument("--kilobytes", type=int, default=20, help="mean size of a sample")
    arguments = parser.parse_args()
    print(
        "| nodes | fetched by the busiest node, x N / dataset | by all / dataset | requests |\n|--:|--:|--:|--:|"
    )
    for row in measure(arguments.samples_per_shard, arguments.kilobytes * 1000):
        print(f"| {row.nodes} | {row.worst:.3f} | {row.mean:.3f} | {row.requests:,} |")


if __name__ == "__main__":
    main()
