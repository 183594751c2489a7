"""Models that are made in a second: random features and a head by least squares, on images that are easy or hard."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import convmlp
from convmlp.transforms.pixels import Normalize
from convmlp_platform.config.sections.execution import RegisterSection, TrackingSection
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.registry.registry import register_bundle
from convmlp_platform.registry.training_samples import checksums_of_split, record_of
from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.prepare import prepare

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLASSES = ("blue", "green", "red")
VAL, TRAIN = 200, 40  # images of each class


def make_dataset(folder: Path, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """Images of 32 x 32 whose noise hides the colour of their class in some."""
    chance = np.random.default_rng(seed)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for label, name in enumerate(classes):
            (folder / "source" / split / name).mkdir(parents=True)
            for number in range(count):
                colour = np.full(3, 110.0) + chance.normal(0, 9, 3)
                colour[2 - label % 3] += 26
                pixels = np.clip(colour + chance.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "source" / split / name / f"{number}.png")
    source = ImageFolderSource(path=folder / "source")
    output = OutputConfig(path=folder / "data", formats=("webdataset",))
    prepare(PrepareConfig(source=source, output=output), progress=lambda _line: None)
    return folder / "data"


def images_of(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """All images, normalised [n, 3, 32, 32], and labels."""
    opened = ShardedSplit(str(data), open_manifest(str(data)), split, "webdataset")
    pixels = [np.asarray(opened.image(number)[0]) for number in range(len(opened))]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return Normalize(MEAN, STD)(images), torch.tensor([opened.label(number) for number in range(len(opened))])


@cache
def make_weights(data: Path) -> dict[str, Tensor]:
    """Weights of convmlp_tiny that know the colours well."""
    torch.manual_seed(0)
    model = convmlp.create_model("convmlp_tiny", num_classes=len(CLASSES)).eval()
    images, labels = images_of(data, "train")
    seen: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.inference_mode():
        model(images)
    handle.remove()
    features = torch.cat([seen[0].flatten(1).double(), torch.ones(len(labels), 1, dtype=torch.float64)], 1)
    wanted = 6.0 * torch.nn.functional.one_hot(labels, len(CLASSES)).double()
    ridge = 100.0 * torch.eye(features.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(features.T @ features + ridge, features.T @ wanted).float()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights | {"head.weight": solved[:-1].T.contiguous(), "head.bias": solved[-1]}


def spec(**changes: Any) -> BundleSpec:
    values: dict[str, Any] = {
        "model": "convmlp_tiny", "num_classes": 3, "classes": CLASSES, "image_size": 32, "crop_pct": 1.0,
        "mean": MEAN, "std": STD, "provenance": {"dataset_digest": "sha256:toy"},
    }  # fmt: skip
    return BundleSpec(**(values | changes))


class Toys:
    """A registry with versions of one model, made of `weights`."""

    def __init__(self, root: Path, uri: str, data: Path, name: str) -> None:
        self.root, self.data, self.name = root, data, name
        self.section = TrackingSection(uri=uri, register_as=RegisterSection(name=name))
        self.weights = make_weights(data)
        train = ShardedSplit(str(data), open_manifest(str(data)), "train", "webdataset")
        self.trained_on = checksums_of_split(train)

    def add(
        self,
        weights: dict[str, Tensor] | None = None,
        *,
        trained_on: NDArray[np.uint64] | None = None,
        known: bool = True,
        tags: dict[str, str] | None = None,
        **changes: Any,
    ) -> str:
        """Register a version; its number."""
        bundle = self.root / f"bundle-{len(list(self.root.iterdir()))}"
        write_bundle(bundle, self.weights if weights is None else weights, spec(**changes))
        samples = record_of(self.trained_on if trained_on is None else trained_on)
        return register_bundle(
            self.section, run_id=None, bundle=bundle, example_image=_png(), metrics={"top1": 99.9},
            tags=tags or {}, training_samples=samples if known else None,
        ).version  # fmt: skip

    def changed(self, **by_name: Tensor) -> dict[str, Tensor]:
        """The good weights with others in place of some; `head_weight` is head.weight."""
        return self.weights | {name.replace("_", ".", 1): value for name, value in by_name.items()}

    def noisy(self, amount: float, seed: int = 1) -> dict[str, Tensor]:
        """A worse model: noise on its head."""
        torch.manual_seed(seed)
        head = self.weights["head.weight"]
        return self.changed(head_weight=head + amount * head.std() * torch.randn(head.shape))


def _png() -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()
