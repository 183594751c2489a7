"""`make bench-data`: the whole data side beside its rivals, on the same files, in one run.

    python tests/bench/bench_data.py IMAGE_FOLDER [--rounds 3]

IMAGE_FOLDER holds JPEGs in one folder a class. Prints Markdown: conversion beside `tar` and webdataset's ShardWriter,
reading beside torchvision, webdataset and FFCV, mixing beside a full permutation and a shuffle buffer, what order and
resume cost at 14 million and 1 billion samples, and what N nodes fetch. Ratios count; rounds alternate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import cycle
from pathlib import Path

import bench_amplification
import bench_conversion
import bench_mixing
import bench_order
import bench_reading

CONVERTED_FILES = 8192
"""Two shards: with fewer files the start of a job weighs more than its work."""


def linked(images: Path, folder: Path, count: int) -> Path:
    """`count` files in ImageNet's layout, hard links where that can be, to have enough of them."""
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, image in zip(range(count), cycle(found), strict=False):
        path = folder / image.parent.name / f"{image.stem}-{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(image)
        except OSError:
            path.write_bytes(image.read_bytes())
    return folder


def conversion(images: Path, work: Path, rounds: int) -> None:
    """Section "Preparing"."""
    found = bench_conversion.measure(linked(images, work / "many", CONVERTED_FILES), work, 2, rounds)
    files, tar = found["images"], found["tar"]
    print(
        f"\n{files:,.0f} JPEGs, {found['megabytes']:,.0f} MB\n\n| what | images/s | time to tar's |\n|---|---:|---:|"
    )
    for name, key in (
        ("`tar -cf`, fsync, nothing checked", "tar"),
        ("`tar -cf`, nothing checked, nothing made durable", "tar_alone"),
        ("ours, all checksums, fsync", "ours"),
        ("ours, with mean and std of 1,000 images", "ours_statistics"),
        ("ours, every image decoded", "ours_decode"),
        ("webdataset ShardWriter, fsync, SHA-256 in a thread", "webdataset_sha256"),
        ("webdataset ShardWriter, fsync, SHA-256 after each shard", "webdataset_sha256_after"),
    ):
        print(f"| {name} | {files / found[key]:,.0f} | {found[key] / tar:.2f} |")
    print(f"\nOurs is {found['webdataset_to_ours']:.2f} times as fast as the faster ShardWriter.")


def reading(images: Path, work: Path, rounds: int) -> None:
    """Section "Reading"."""
    found = bench_reading.measure(images, work, 2, rounds)
    print("\n| what | images/s |\n|---|---:|")
    for name, rate in found["rates"].items():
        print(f"| {name} | {rate:,.0f} |")
    print("\n| ratio, median of the rounds | |\n|---|---:|")
    for name, ratio in found["ratios"].items():
        print(f"| {name} | {ratio:.2f} |")
    for workers, seconds in found["resume_seconds"].items():
        print(f"| first batch at a random position, {workers} readers, worst of ten | {seconds:.2f} s |")


def main() -> None:
    """All sections."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, help="where 6 GB fit; hard links to the images if on the same disk"
    )
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        print("### Reading", flush=True)
        reading(options.images, work, options.rounds)
        print("\n### Preparing", flush=True)
        conversion(options.images, work, options.rounds)
        print("\n### Order at scale\n", flush=True)
        print(bench_order.table(bench_order.measure(work)))
        print("\n### Mixing\n", flush=True)
        print(bench_mixing.table())
        print("\n### What N nodes fetch\n", flush=True)
        print("| nodes | busiest node, N times its bytes to the dataset |\n|---:|---:|")
        for row in bench_amplification.measure(300, 20_000):
            print(f"| {row.nodes} | {row.worst:.3f} |")


if __name__ == "__main__":
    main()
