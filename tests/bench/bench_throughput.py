"""`make bench`: reading and training speed on this machine, each beside its plain counterpart in the same run.

    python tests/bench/bench_throughput.py [IMAGE_FOLDER] [--output FILE]

Without a folder of images (ImageNet's layout) it makes 400 of its own. Rounds of the contestants alternate and the
best of each counts, so that other load on the machine hits all alike.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from convmlp import create_model
from convmlp.transforms import train_transform
from convmlp_platform.data.loader import TrainLoader
from convmlp_platform.data.order import SampleOrder
from convmlp_platform.data.split import ShardedSplit, open_manifest
from data_prep.config import OutputConfig, PrepareConfig
from data_prep.convert import prepare
from data_prep.source_config import ImageFolderSource

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS, WORKERS, BATCH = 3, 2, 40
Row = tuple[str, float, float]


def make_images(folder: Path, count: int = 400) -> Path:
    """Photograph-like JPEGs of 500 x 375 pixels: smooth shapes and noise, about 100 kB each."""
    draw = np.random.default_rng(0)
    for number in range(count):
        coarse = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16
        )
        pixels = np.clip(smooth + draw.integers(-25, 25, smooth.shape), 0, 255).astype(np.uint8)
        path = folder / f"class-{number % 10}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=88)
    return folder


def best_rates(contestants: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Images per second of each, the best of `ROUNDS` alternating rounds."""
    rates = dict.fromkeys(contestants, 0.0)
    for _ in range(ROUNDS):
        for name, work in contestants.items():
            start = time.perf_counter()
            images = work()
            rates[name] = max(rates[name], images / (time.perf_counter() - start))
    return rates


def reading(folder: Path, shards: Path) -> list[Row]:
    """Decode, random-resized crop to 224, flip, normalise; the same number of reader processes."""
    source = ImageFolderSource(path=folder, val_fraction=0.0)
    prepare(PrepareConfig(source=source, output=OutputConfig(path=shards)), progress=lambda _line: None)
    manifest = open_manifest(str(shards))

    def ours(format: str, verify: bool) -> int:
        split = ShardedSplit(shards, manifest, "train", format, verify=verify)
        transform = train_transform(224, mean=MEAN, std=STD)
        steps = len(split) // BATCH
        loader = TrainLoader(split, transform, SampleOrder(len(split), 1, 0), BATCH, BATCH, 0, 1, WORKERS)
        return sum(len(micro.images) for micros in loader.steps(0, steps) for micro in micros)

    def torchvision() -> int:
        flow = transforms.Compose(
            [
                transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        batches = DataLoader(
            ImageFolder(str(folder), flow), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True
        )
        return sum(len(images) for images, _ in batches)

    rates = best_rates(
        {
            "torchvision ImageFolder": torchvision,
            "webdataset shards, checked": lambda: ours("webdataset", True),
            "webdataset shards, unchecked": lambda: ours("webdataset", False),
            "ffcv shards, checked": lambda: ours("ffcv", True),
        }
    )
    return [(f"read: {name}", rate, rate / rates["torchvision ImageFolder"]) for name, rate in rates.items()]


def training() -> list[Row]:
    """Forward, backward and update of ConvMLP-S at 224 pixels, batch 8 on a CPU and 128 on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, steps = (128, 20) if device.type == "cuda" else (8, 2)

    def contestant(layout: torch.memory_format, bf16: bool) -> Callable[[], int]:
        model = create_model("convmlp_s").to(device, memory_format=layout)
        optimizer = torch.optim.AdamW(model.parameters())
        images = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=layout)
        labels = torch.randint(0, 1000, (batch,), device=device)

        def run() -> int:
            for _ in range(steps):
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            loss.item()
            return steps * batch

        run()
        return run

    rates = best_rates(
        {
            "fp32, NCHW": contestant(torch.contiguous_format, False),
            "fp32, channels_last": contestant(torch.channels_last, False),
            "bf16, channels_last": contestant(torch.channels_last, True),
        }
    )
    return [(f"train ConvMLP-S: {name}", rate, rate / rates["fp32, NCHW"]) for name, rate in rates.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", nargs="?", type=Path)
    arguments = parser.parse_args()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(f"{platform.machine()}, {device}, torch {torch.__version__}; {WORKERS} reader processes\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.images or make_images(Path(scratch, "images"))
        rows = [*reading(folder, Path(scratch, "shards")), *training()]
    print("| what | images/s | ratio |\n|---|---:|---:|")
    for name, rate, ratio in rows:
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
