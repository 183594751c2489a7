"""Reading speed beside torchvision, stock webdataset and stock FFCV, in one run on the same images.

    python tests/bench/bench_reading.py IMAGE_FOLDER [--workers 2]
    python tests/bench/bench_reading.py IMAGE_FOLDER --cpu [--rounds 9]     beside other work: CPU time, no processes

Every contestant decodes, cuts a random-resized crop of 224 (bilinear), flips, and gives uint8 batches (torchvision
and webdataset also as normalised floats, as torchvision's own recipes do; ours are normalised on the training device),
with the same number of reader processes or threads. FFCV reads
the very files that we wrote: JPEG passed through, and raw pixels at no more than 256 px. Start-up is left out (the
first batches aren't timed); rounds of the contestants alternate and the best of each counts.

"Whole images" is our reader as it was before it decoded crops alone; "without the module" decodes down to the crop's
last row. `--cpu` takes turns batch by batch in one process, one thread.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from convmlp.transforms.image_transforms import train_transform
from convmlp_platform.data.dataset import split as split_module
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.images import jpeg_box
from data_prep.prepare import prepare

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, WARM_BATCHES, SAMPLES = 64, 4, 1600
TURN = 2
"""Batches of a contestant in its turn, where CPU time is taken."""
IMAGES = {"jpeg": 1600, "raw": 16000}
"""Images timed in a round."""
Batches = Callable[[], Iterator[Any]]


def copies(images: Path, folder: Path) -> Path:
    """`SAMPLES` copies of the images in ImageNet's layout: an epoch of some seconds."""
    found = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number, image in zip(range(SAMPLES), cycle(found), strict=False):
        path = folder / image.parent.name / f"{image.stem}-{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, path)
    return folder


def small_pixels(images: Path, folder: Path) -> Path:
    """The images as PNG at no more than 256 px: what ffcv's `max_resolution=256` with raw pixels stores."""
    for image in images.rglob("*.jpg"):
        with Image.open(image) as opened:
            opened.thumbnail((256, 256), Image.Resampling.BOX)
            path = folder / image.parent.name / f"{image.stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            opened.convert("RGB").save(path, compress_level=1)
    return folder


def shards(images: Path, folder: Path, format: str, per_shard: int) -> Path:
    """A prepared dataset of one format."""
    output = OutputConfig(path=folder, formats=(format,), samples_per_shard=per_shard)  # type: ignore[arg-type]
    source = ImageFolderSource(path=images, val_fraction=0.0)
    prepare(PrepareConfig(source=source, output=output), progress=lambda _line: None)
    return folder


def ours(folder: Path, format: str, workers: int, checked: bool = True) -> Iterator[torch.Tensor]:
    """This project's reader, over the ends of epochs. Unchecked: without computing any checksum."""
    hashed = split_module.xxhash.xxh3_64_intdigest
    if not checked:
        split_module.xxhash.xxh3_64_intdigest = lambda _content: 0  # readers are forked with it
    try:
        for micro_batches in train_loader(folder, format, workers, checked).steps(0, 10**6):
            yield micro_batches[0].images
    finally:
        split_module.xxhash.xxh3_64_intdigest = hashed


def whole_images() -> AbstractContextManager[Any]:
    """The reader decodes whole images meanwhile."""
    return patch.object(split_module, "header_for_boxes", lambda _content: None)


def without_the_module() -> AbstractContextManager[Any]:
    """The reader decodes down to a crop's last row meanwhile."""
    return patch.object(jpeg_box, "_compiled", lambda: (None, ""))


def ours_meanwhile(
    meanwhile: Callable[[], AbstractContextManager[Any]], folder: Path, workers: int
) -> Iterator[torch.Tensor]:
    """Our reader, whose processes are forked meanwhile."""
    with meanwhile():
        yield from ours(folder, "webdataset", workers)


def train_loader(folder: Path, format: str, workers: int, verify: bool = True) -> TrainLoader:
    """One rank's loader of micro-batches of `BATCH`."""
    split = ShardedSplit(folder, open_manifest(str(folder)), "train", format, verify=verify)
    transform = train_transform(224, mean=MEAN, std=STD, interpolation="bilinear")
    return TrainLoader(split, transform, SampleOrder(len(split), 1, 0), BATCH, BATCH, 0, 1, workers)


def flow(floats: bool) -> Callable[[Image.Image], torch.Tensor]:
    """torchvision's transforms; uint8, or normalised floats."""
    from torchvision import transforms

    tail = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)] if floats else [transforms.PILToTensor()]
    return transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *tail])


def torchvision_reader(folder: Path, workers: int, floats: bool) -> Iterator[torch.Tensor]:
    """ImageFolder and DataLoader."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder), flow(floats))
    sampler = RandomSampler(data, num_samples=10**6)
    return (images for images, _ in DataLoader(data, BATCH, sampler=sampler, num_workers=workers))


def webdataset_reader(folder: Path, workers: int, floats: bool) -> Iterator[torch.Tensor]:
    """Stock webdataset over our tars, with torchvision's transforms."""
    import webdataset

    tars = sorted(str(path) for path in folder.rglob("*.tar"))
    data = (
        webdataset.WebDataset(tars, shardshuffle=len(tars))
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;jpeg;png", "cls")
        .map_tuple(flow(floats), lambda label: label)
        .repeat(10**6)
        .batched(BATCH, partial=False)
    )
    return (images for images, _ in webdataset.WebLoader(data, batch_size=None, num_workers=workers))


def ffcv_reader(folder: Path, workers: int) -> Callable[[], Iterator[torch.Tensor]]:
    """Stock FFCV over our `.beton`; compiled once, so its epochs are what is timed."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    (beton,) = folder.rglob("*.beton")
    image = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), ToTensor(), ToTorchImage()]
    loader = Loader(
        str(beton),
        BATCH,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )

    def epochs() -> Iterator[torch.Tensor]:
        while True:
            for images, _ in loader:
                yield images

    return epochs


def rate(batches: Batches, images: int) -> float:
    """Images per second, after `WARM_BATCHES`."""
    reader = batches()
    for _ in range(WARM_BATCHES):
        next(reader)
    start, count = time.perf_counter(), 0
    while count < images:
        count += len(next(reader))
    seconds = time.perf_counter() - start
    del reader
    return count / seconds


def cpu_microseconds(jpegs: Path, tars: Path, rounds: int) -> dict[str, list[float]]:
    """CPU time of a photograph by contestant, in each of so many rounds; without reader processes."""
    plain = nullcontext
    contestants: dict[str, tuple[Iterator[torch.Tensor], Callable[[], AbstractContextManager[Any]]]] = {
        "torchvision, uint8": (torchvision_reader(jpegs, 0, False), plain),
        "webdataset, uint8": (webdataset_reader(tars, 0, False), plain),
        "ours, checked": (ours(tars, "webdataset", 0), plain),
        "ours, without the module": (ours(tars, "webdataset", 0), without_the_module),
        "ours, whole images": (ours(tars, "webdataset", 0), whole_images),
    }
    by_round: dict[str, list[float]] = {name: [] for name in contestants}
    turns = max(1, 512 // (TURN * BATCH))
    for number in range(-1, rounds):
        spent = dict.fromkeys(contestants, 0.0)
        for _ in range(turns):
            for name, (batches, meanwhile) in contestants.items():
                with meanwhile():
                    start = time.process_time()
                    images = sum(len(next(batches)) for _ in range(TURN))
                    spent[name] += (time.process_time() - start) / images
        if number >= 0:
            for name in contestants:
                by_round[name].append(1e6 * spent[name] / turns)
    return by_round


def print_cpu(by_round: dict[str, list[float]]) -> None:
    """Medians over the rounds, and each contestant's ratio to our reader in the same round, with its range."""
    base = np.array(by_round["ours, checked"])
    print(f"one thread, no reader processes; {jpeg_box.way_of_decoding()}")
    for name, values in by_round.items():
        ratios = np.array(values) / base
        print(
            f"{name:30} {np.median(values):8,.0f} µs CPU  {np.median(ratios):6.2f} times ours"
            f"  ({ratios.min():.2f} to {ratios.max():.2f})"
        )


def resume_seconds(folder: Path, workers: int, seed: int) -> float:
    """From constructing everything to the first batch, at a random step of the first thousand epochs."""
    step = int(np.random.default_rng(seed).integers(0, 1000 * SAMPLES // BATCH))
    start = time.perf_counter()
    batches = train_loader(folder, "webdataset", workers).steps(step, step + 10)
    next(batches)
    return time.perf_counter() - start


def measure(images: Path, work: Path, num_workers: int = 2, rounds: int = 3) -> dict[str, Any]:
    """All contestants on the JPEGs under `images`; `work` takes the prepared shards.

    Returns: `rates` (images/s by contestant, best of `rounds`), `ratios` (by "a / b", median over the rounds of
    a's rate to b's in the same round), `resume_seconds` (by reader processes, worst of ten).
    """
    jpegs = copies(images, work / "images")
    tars = shards(jpegs, work / "tars", "webdataset", SAMPLES // 16)
    beton = shards(jpegs, work / "beton", "ffcv", SAMPLES)
    raw = shards(small_pixels(jpegs, work / "small"), work / "raw", "ffcv", SAMPLES)
    contestants: dict[str, tuple[Batches, str]] = {
        "torchvision, uint8": (lambda: torchvision_reader(jpegs, num_workers, False), "jpeg"),
        "torchvision, floats": (lambda: torchvision_reader(jpegs, num_workers, True), "jpeg"),
        "webdataset, uint8": (lambda: webdataset_reader(tars, num_workers, False), "jpeg"),
        "webdataset, floats": (lambda: webdataset_reader(tars, num_workers, True), "jpeg"),
        "ours, tars, checked": (lambda: ours(tars, "webdataset", num_workers), "jpeg"),
        "ours, tars, unchecked": (lambda: ours(tars, "webdataset", num_workers, False), "jpeg"),
        "ours, tars, whole images": (partial(ours_meanwhile, whole_images, tars, num_workers), "jpeg"),
        "ours, tars, without the module": (
            partial(ours_meanwhile, without_the_module, tars, num_workers),
            "jpeg",
        ),
        "ours, beton JPEG, checked": (lambda: ours(beton, "ffcv", num_workers), "jpeg"),
        "ours, beton JPEG, unchecked": (lambda: ours(beton, "ffcv", num_workers, False), "jpeg"),
        "ours, beton raw, checked": (lambda: ours(raw, "ffcv", num_workers), "raw"),
        "ours, beton raw, unchecked": (lambda: ours(raw, "ffcv", num_workers, False), "raw"),
    }
    try:
        contestants["ffcv, JPEG"] = (ffcv_reader(beton, num_workers), "jpeg")
        contestants["ffcv, raw"] = (ffcv_reader(raw, num_workers), "raw")
    except ImportError:
        print("ffcv is not installed: its rows are left out")
    by_round: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (batches, kind) in contestants.items():
            by_round[name].append(rate(batches, IMAGES[kind]))
    pairs = [
        ("ours, tars, checked", "torchvision, uint8"),
        ("ours, tars, checked", "torchvision, floats"),
        ("ours, tars, checked", "webdataset, uint8"),
        ("ours, tars, checked", "webdataset, floats"),
        ("ours, tars, checked", "ours, tars, unchecked"),
        ("ours, tars, checked", "ours, tars, whole images"),
        ("ours, tars, without the module", "ours, tars, whole images"),
        ("ours, beton JPEG, checked", "ffcv, JPEG"),
        ("ours, beton raw, checked", "ffcv, raw"),
        ("ours, beton raw, checked", "ours, beton raw, unchecked"),
    ]
    ratios = {
        f"{a} / {b}": float(np.median(np.array(by_round[a]) / np.array(by_round[b])))
        for a, b in pairs
        if b in by_round
    }
    resumed = {workers: max(resume_seconds(tars, workers, seed) for seed in range(10)) for workers in (0, 2)}
    return {
        "rates": {name: max(values) for name, values in by_round.items()},
        "ratios": ratios,
        "resume_seconds": resumed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="CPU time of a photograph only")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as work:
        if arguments.cpu:
            torch.set_num_threads(1)
            jpegs = copies(arguments.images, Path(work) / "images")
            tars = shards(jpegs, Path(work) / "tars", "webdataset", SAMPLES // 16)
            print_cpu(cpu_microseconds(jpegs, tars, arguments.rounds))
            return
        found = measure(arguments.images, Path(work), arguments.workers, arguments.rounds)
    for name, value in found["rates"].items():
        print(f"{name:45} {value:10,.0f} images/s")
    for name, value in found["ratios"].items():
        print(f"{name:65} {value:7.2f}x")
    for workers, seconds in found["resume_seconds"].items():
        print(f"resume at a random position, {workers} readers {seconds:10.3f} s")


if __name__ == "__main__":
    main()
