"""How fast a folder of images becomes shards, beside `tar` and webdataset's ShardWriter, on the same files.

    python tests/bench/bench_conversion.py IMAGES [--work FOLDER] [--rounds 3]

IMAGES holds one folder a class, some 8,000 files or more. Every contender writes one copy of the files; the former
one's is deleted first, and what is dirty is written out. All end with their files durable, and `tar` also without, as
people use it. `tar` checks nothing; ours keeps SHA-256 a shard, XXH3-64 a payload and XXH3-128 a source image.

The dataset's mean and standard deviation come from 1,000 decoded images, however many there are: a fixed cost, 1.4 s of
one core, that a million images hide and 8,000 don't. So ours is timed with it and without.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare
from data_prep.shards.runner import ray_map

SAMPLES_PER_SHARD = 4096
Validate = Literal["structure", "decode"]


def measure(images: Path, work: Path, num_workers: int = 2, rounds: int = 3) -> dict[str, float]:
    """Seconds of every contender, best of `rounds` that alternate, and what they are to each other.

    Args:
        images: a folder with one folder a class.
        work: a folder for the output, about as large as the images; emptied afterwards.
        num_workers: Ray workers of ours; they are started, and have their imports done, before time counts.
        rounds: how often all are run.

    Returns:
        `images`, `megabytes`; seconds `tar`, followed by fsync, `tar_alone`, `ours` (JPEG structure checked, one image
        decoded for the statistics), `ours_statistics` (1,000), `ours_decode` (all), `webdataset_sha256` (hashed in a
        thread beside the writing) and `webdataset_sha256_after` (in the same thread); and the ratios `ours_to_tar`
        (limit 1.6), `statistics_to_tar`, `decode_to_tar` and `webdataset_to_ours` (at least 2), the last with the
        faster one.
    """
    files = sorted(path for path in images.rglob("*") if path.is_file())
    for path in files:  # into the page cache
        path.read_bytes()
    contenders: dict[str, Callable[[], object]] = {
        "tar": lambda: _tar(images, work / "out", durable=True),
        "tar_alone": lambda: _tar(images, work / "out", durable=False),
        "ours": lambda: _ours(images, work / "out", "structure", statistics_images=1),
        "webdataset_sha256": lambda: _shard_writer(files, work / "out", overlapped=True),
        "webdataset_sha256_after": lambda: _shard_writer(files, work / "out", overlapped=False),
        "ours_statistics": lambda: _ours(images, work / "out", "structure"),
        "ours_decode": lambda: _ours(images, work / "out", "decode"),
    }
    best = dict.fromkeys(contenders, float("inf"))
    with _workers(num_workers, files, work):
        for _ in range(rounds):
            for name, run in contenders.items():
                shutil.rmtree(work / "out", ignore_errors=True)
                os.sync()
                started = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - started)
    shutil.rmtree(work / "out", ignore_errors=True)
    shard_writer = min(best["webdataset_sha256"], best["webdataset_sha256_after"])
    return {
        "images": len(files),
        "megabytes": sum(path.stat().st_size for path in files) / 1e6,
        **best,
        "ours_to_tar": best["ours"] / best["tar"],
        "statistics_to_tar": best["ours_statistics"] / best["tar"],
        "decode_to_tar": best["ours_decode"] / best["tar"],
        "webdataset_to_ours": shard_writer / best["ours"],
    }


def _tar(images: Path, output: Path, *, durable: bool) -> None:
    """Hard links are written as files, as the others do."""
    output.mkdir(parents=True)
    subprocess.run(
        ["tar", "--hard-dereference", "-cf", output / "all.tar", "-C", images, "."],
        check=True,
    )
    if durable:
        _sync(output / "all.tar")


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _ours(images: Path, output: Path, validate: Validate, **settings: int) -> None:
    config = _job(images, output, validate, SAMPLES_PER_SHARD, **settings)
    prepare(config, map_shards=ray_map, progress=lambda line: None)


def _job(
    images: Path, output: Path, validate: Validate, samples_per_shard: int, **settings: int
) -> PrepareConfig:
    return PrepareConfig(
        source=ImageFolderSource(path=images, val_fraction=0),
        output=OutputConfig(path=output, formats=("webdataset",), samples_per_shard=samples_per_shard),
        validate_images=validate,
        **settings,
    )


def _shard_writer(files: list[Path], output: Path, *, overlapped: bool) -> None:
    import webdataset

    output.mkdir(parents=True)
    labels = {name: i for i, name in enumerate(sorted({path.parent.name for path in files}))}
    hashes: list[Future[str]] = []
    with ThreadPoolExecutor(1) as pool:

        def hash_shard(name: str) -> None:
            hashes.append(pool.submit(_sha256, name))
            if not overlapped:
                hashes[-1].result()

        pattern = str(output / "train-%06d.tar")
        with webdataset.ShardWriter(pattern, SAMPLES_PER_SHARD, post=hash_shard, verbose=0) as sink:
            for path in files:
                sample: dict[str, Any] = {
                    "__key__": f"{path.parent.name}/{path.stem}",
                    "jpg": path.read_bytes(),
                    "cls": labels[path.parent.name],
                }
                sink.write(sample)
    (output / "sha256").write_text("\n".join(future.result() for future in hashes))
    _sync(output / "sha256")


def _sha256(path: str) -> str:
    """Of a shard, once it is durable."""
    _sync(Path(path))
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _workers(count: int, files: list[Path], work: Path) -> Iterator[None]:
    """A Ray of this process's own, whose workers have run tasks of data preparation."""
    import ray

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
    try:
        few = work / "few" / "class"
        few.mkdir(parents=True)
        for i, path in enumerate(files[: 16 * count]):
            shutil.copyfile(path, few / f"{i}{path.suffix}")
        job = _job(few.parent, work / "warm", "decode", samples_per_shard=4)
        prepare(job, map_shards=ray_map, progress=lambda line: None)
        yield
    finally:
        ray.shutdown()
        for folder in (work / "few", work / "warm"):
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="a folder with one folder of image files a class")
    parser.add_argument("--work", type=Path, help="where to write; by default a temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="bench-conversion-") as work:
        result = measure(options.images.absolute(), Path(work), options.num_workers, options.rounds)
    count, size = result.pop("images"), result.pop("megabytes")
    print(f"{count:,.0f} images, {size:,.0f} MB, {options.num_workers} workers, best of {options.rounds}")
    for name, value in result.items():
        seconds = "_to_" not in name
        rate = f" s {count / value:8,.0f} images/s {size / value:7,.0f} MB/s" if seconds else ""
        print(f"{name:28s} {value:8.2f}{rate}")


if __name__ == "__main__":
    main()
