"""Feature maps of one or several models, of image files or of a dataset's images, on one page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

import convmlp
from convmlp.feature_maps import create_feature_extractor, stage_maps
from convmlp.transforms.image_transforms import eval_transform
from convmlp.weight_files import Choice
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.errors import ConfigError, DataError
from convmlp_platform.models.predictors.given_images import open_image
from convmlp_platform.pictures.feature_map_sheet import How, MapOfStage, MapsOfModel, feature_sheet
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.found_model import FoundModel

Channels = tuple[float, float, float]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224
"""Pixels of the square that models see, where they don't ask for another size."""


@dataclass(frozen=True)
class _Network:
    """A network by name, with its weights, and the images that it was made for."""

    title: str
    name: str
    weights: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None
    mean: Channels = _MEAN
    std: Channels = _STD


def draw_features(
    models: Sequence[str],
    images: Mapping[str, Image.Image],
    path: Path,
    *,
    how: How,
    size: int | None = None,
    choice: Choice = "auto",
    say: Callable[[str], None] = lambda _line: None,
) -> Path:
    """A page with a row for each image and model, written as PNG.

    Args:
        models: anything `find_model` takes; NAME=FILE for a bare file of weights; or a network's name alone, which gets
            fresh weights (of seed 0).
        images: by name, RGB.
        how: what of a map is shown.
        size: pixels of the square that every model sees; default: what it was trained with, else 224.
        choice: of checkpoints and files with two sets of weights, which.
        say: takes a line on which was taken.

    Raises:
        ConfigError: no such model, its weights don't fit, or it doesn't take images of this size.
        DataError: the picture can't be written.
    """
    networks = [_network(text, choice, say) for text in models]
    rows = []
    built = [(network, *_built(network, size)) for network in networks]
    for title, image in images.items():
        for network, extractor, side in built:
            seen, maps = _maps(extractor, image, side, network)
            rows.append(MapsOfModel(network.title, seen, maps, title))
    page = feature_sheet(rows, how, title="Feature maps")
    return save_picture(page, path)


def image_files(files: Sequence[Path]) -> dict[str, Image.Image]:
    """Opened by name, RGB.

    Raises:
        DataError: one is missing or no image.
    """
    return {str(file): open_image(file).convert("RGB") for file in files}


def dataset_images(path: str, split: str, count: int, seed: int) -> dict[str, Image.Image]:
    """`count` images of a prepared dataset, drawn by `seed`, by their keys.

    Raises:
        DataError: no such dataset or split, or a damaged sample.
    """
    opened, samples = chosen_samples(path, split, count, seed)
    return {opened.key(sample): opened.image(sample)[0] for sample in samples}


def chosen_samples(path: str, split: str, count: int | None, seed: int) -> tuple[ShardedSplit, list[int]]:
    """A split, opened, and `count` (None: all) of its samples in an order drawn by `seed`.

    Raises:
        DataError: no such dataset or split.
    """
    manifest = open_manifest(path)
    if (lack := manifest.lacks(split)) is not None:
        raise DataError(f"--split: dataset {manifest.name} {lack}")
    formats = manifest.formats
    opened = ShardedSplit(path, manifest, split, "webdataset" if "webdataset" in formats else formats[0])
    order = torch.randperm(len(opened), generator=torch.Generator().manual_seed(seed)).tolist()
    return opened, order[:count]


def short_name(found: FoundModel) -> str:
    """Of a model, for headlines: its version in the registry, its run and step, or its file's name."""
    if found.kind == "registry":
        return found.pinned
    run, step = found.lineage.get("init.run"), found.lineage.get("init.step")
    if run is None:
        return Path(found.text).name
    return run if step is None else f"{run}, step {int(step):,}"


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG file, also into a folder that is still to be made.

    Raises:
        DataError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    except OSError as error:
        raise DataError(f"--out: can't write {path}: {error.strerror or error}") from None
    return path


def _network(text: str, choice: Choice, say: Callable[[str], None]) -> _Network:
    name, _, file = text.partition("=")
    if file and _is_name(name):
        return _Network(text, name, _weights(find_model(file, choice=choice), say), **_published(name))
    if _is_name(text) and not Path(text).exists():
        return _Network(f"{text}, fresh weights", text, **_published(text))
    found = find_model(text, choice=choice)
    if found.spec is not None:
        spec = found.spec
        return _Network(
            short_name(found),
            spec.model,
            found.state_dict(),
            spec.options,
            spec.image_size,
            spec.mean,
            spec.std,
        )
    if found.job is not None:
        return _trained(found, found.job, say)
    raise ConfigError(
        f"{text}: these weights don't say of which network they are: write NAME={text}, e.g. convmlp_s={text}"
    )


def _trained(found: FoundModel, job: Any, say: Callable[[str], None]) -> _Network:
    try:
        manifest = open_manifest(job.data.path)
        mean, std = manifest.mean, manifest.std
    except DataError:  # the dataset may be gone; ImageNet's figures are near enough for a look
        mean, std = _MEAN, _STD
    return _Network(
        short_name(found),
        job.model.name,
        _weights(found, say),
        job.model.options,
        job.data.image_size,
        mean,
        std,
    )


def _weights(found: FoundModel, say: Callable[[str], None]) -> dict[str, Tensor]:
    weights = found.weights()
    if weights.choice is not None:
        say(f"{found.pinned}: {weights.choice}")
    return weights.tensors


def _is_name(text: str) -> bool:
    return text in convmlp.list_models() or timm.is_model(text)


def _published(name: str) -> dict[str, Any]:
    """How the images of a network's published weights are normalised."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {} if config is None else {"mean": config.mean, "std": config.std}


def _built(network: _Network, size: int | None) -> tuple[nn.Module, int]:
    side = size or network.image_size or SIZE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            extractor = create_feature_extractor(
                network.name, weights=network.weights, image_size=side, **network.options
            )
        except (ValueError, TypeError, RuntimeError, AttributeError) as error:
            raise ConfigError(f"{network.title}: {' '.join(str(error).split())}") from None
    return extractor, side


def _maps(
    extractor: nn.Module, image: Image.Image, side: int, network: _Network
) -> tuple[Image.Image, list[MapOfStage]]:
    prepare = eval_transform(side, mean=network.mean, std=network.std, crop_pct=1.0)
    tensor = prepare(image)
    try:
        maps = stage_maps(extractor, tensor)
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{network.title}: images of {side} x {side} pixels: {reason}") from None
    spread = tensor * torch.tensor(network.std)[:, None, None] + torch.tensor(network.mean)[:, None, None]
    pixels = (spread.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    isotropic = len({one.stride for one in maps}) == 1
    names = [f"after {one.layer}" if isotropic else f"stride {one.stride}" for one in maps]
    return Image.fromarray(pixels), [
        MapOfStage(name, one.values.numpy()) for name, one in zip(names, maps, strict=True)
    ]
