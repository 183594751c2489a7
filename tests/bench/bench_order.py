"""What the order of a rank's next batch costs at 14 million and at 1 billion samples.

    python tests/bench/bench_order.py [--work DIR]

A manifest and real index files are written, no images. Then a fresh process plays one rank of 1,024: it loads the
manifest, opens the split, and asks for its samples of a random step with their places in the shards (file, offset,
length, checksum), each index checked against its SHA-256 as in training. 14 million samples have 3,418 indexes of their
own (1.5 GB); at 1 billion all 61,036 names are links to one index of 16,384 samples, as 110 GB of them would be needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_prep.dataset import index as index_module
from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import DatasetManifest, ShardInfo, SplitInfo, write_manifest
from data_prep.storage.files import sha256_file

RANKS, MICRO_BATCH, IMAGE_BYTES = 1024, 32, 107_000
SCALES = {"14 million": (14_000_000, 4096, False), "1 billion": (1_000_000_000, 16_384, True)}


def write_dataset(folder: Path, samples: int, per_shard: int, linked: bool) -> None:
    """A manifest of `samples` samples with all of its index files, and no shard."""
    (folder / "webdataset").mkdir(parents=True)
    shards, first = [], ""
    for number, start in enumerate(range(0, samples, per_shard)):
        count = min(per_shard, samples - start)
        name = f"webdataset/train-{number:06d}"
        path = folder / f"{name}.index.arrow"
        if linked and first and count == per_shard:
            path.hardlink_to(folder / first)
            sha256 = shards[0].index_sha256
        else:
            _write_index(path, start, count)
            first, sha256 = first or f"{name}.index.arrow", sha256_file(path)
        shards.append(
            ShardInfo(
                file=f"{name}.tar",
                index=f"{name}.index.arrow",
                num_samples=count,
                bytes=count * (IMAGE_BYTES + 1024),
                sha256="0" * 64,
                index_sha256=sha256,
            )
        )
    write_manifest(
        DatasetManifest(
            name=folder.name,
            classes=[str(label) for label in range(1000)],
            splits={"train": SplitInfo(num_samples=samples, formats={"webdataset": shards})},
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            source={},
            preprocessing={},
            digest="sha256:" + "0" * 64,
        ),
        folder,
    )


def _write_index(path: Path, start: int, count: int) -> None:
    """The columns of `data_prep.dataset.index`, made at once instead of row by row."""
    draw = np.random.default_rng(start)
    schema = index_module._SCHEMA
    values: dict[str, Any] = {
        "key": [f"{start + i:012d}" for i in range(count)],
        "offset": np.arange(count) * (IMAGE_BYTES + 1024),
        "length": np.full(count, IMAGE_BYTES),
        "label": draw.integers(0, 1000, count),
        "checksum": draw.integers(0, 2**63, count, dtype=np.uint64),
        "source_hash": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), count, [None, pa.py_buffer(draw.bytes(16 * count))]
        ),
    }
    columns = [
        column if isinstance(column, pa.Array) else pa.array(column, type=field.type)
        for field in schema
        for column in [values.get(field.name, np.zeros(count, dtype=np.int64))]
    ]
    batch = pa.record_batch(columns, schema=schema)
    options = pa.ipc.IpcWriteOptions(compression=None, metadata_version=pa.ipc.MetadataVersion.V5)
    with path.open("wb") as file, pa.ipc.new_file(file, schema, options=options) as writer:
        writer.write_batch(batch)
    assert len(read_index(path)) == count


def play_rank(folder: Path, rank: int) -> dict[str, float]:
    """In this process: seconds and megabytes of manifest, split and the next batch of a rank."""
    from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
    from convmlp_platform.data.sample_order import SampleOrder

    before, started = _rss(), time.perf_counter()
    manifest = open_manifest(str(folder))
    loaded, loaded_rss = time.perf_counter(), _rss()
    split = ShardedSplit(folder, manifest, "train", "webdataset")
    order = SampleOrder(len(split), RANKS, seed=1)
    step = random.Random(rank).randrange(len(split) // (RANKS * MICRO_BATCH))
    _, samples = order.step_samples(step, RANKS * MICRO_BATCH, rank * MICRO_BATCH, MICRO_BATCH)
    places = set()
    for number, position in map(split.locate, samples.tolist()):
        index = split.index(number)
        places.add(
            (number, int(index.offset[position]), int(index.length[position]), int(index.checksum[position]))
        )
    assert len(places) == MICRO_BATCH
    done, done_rss = time.perf_counter(), _rss()
    return {
        "manifest_ms": (loaded - started) * 1e3,
        "manifest_mb": (loaded_rss - before) / 1e6,
        "batch_ms": (done - loaded) * 1e3,
        "batch_mb": (done_rss - loaded_rss) / 1e6,
    }


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(
    work: Path, scales: dict[str, tuple[int, int, bool]] = SCALES, ranks: int = 3
) -> dict[str, dict[str, float]]:
    """The worst of a few ranks, each in a process of its own."""
    figures: dict[str, dict[str, float]] = {}
    for name, (samples, per_shard, linked) in scales.items():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            dataset = Path(folder) / "dataset"
            write_dataset(dataset, samples, per_shard, linked)
            chosen = random.Random(samples).sample(range(RANKS), ranks)
            runs = [
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, "--play", str(dataset), "--rank", str(rank)],
                        check=True,
                        capture_output=True,
                        text=True,
                    ).stdout
                )
                for rank in chosen
            ]
            figures[name] = {key: max(run[key] for run in runs) for key in runs[0]}
    return figures


def table(figures: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = [
        "| samples | next batch of a rank | its memory | manifest, once | memory of that |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {f['batch_ms']:.0f} ms | {f['batch_mb']:.0f} MB "
        f"| {f['manifest_ms']:.0f} ms | {f['manifest_mb']:.0f} MB |"
        for name, f in figures.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="where 1.5 GB fit (default: the temporary folder)"
    )
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        print(json.dumps(play_rank(options.play, options.rank)))
    else:
        print(table(measure(options.work or Path(tempfile.gettempdir()))))


if __name__ == "__main__":
    main()
