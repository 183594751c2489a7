"""Feature maps as pictures: each stage's map beside the image, models below one another.

Which structure of the image a network keeps is seen at a glance: in a ConvMLP edges and textures stay where they are,
in an MLP over patches they are gone after the first blocks (arXiv:2109.04454, its figures of feature maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmlp_platform.pictures.contact_sheet import Cell, contact_sheet
from convmlp_platform.pictures.style import PAPER, side_by_side

How = Literal["components", "mean", "channels"]
"""components: the first three principal components of the positions' features as red, green and blue; mean: the
mean over channels of their absolute values; channels: the four channels that differ most over the image."""

WORDS: dict[How, str] = {
    "components": "colours: the first three principal components of each map",
    "mean": "dark to bright: mean absolute value over the channels of each map",
    "channels": "the four channels of each map that vary most, dark to bright",
}
_SIDE, _GAP = 224, 4
_TAILS = (1.0, 99.0)
"""Percentiles that become the darkest and the brightest."""


@dataclass(frozen=True)
class MapOfStage:
    """A map [channels, height, width] and its name, e.g. `stride 8`."""

    name: str
    values: NDArray[np.floating]


@dataclass(frozen=True)
class MapsOfModel:
    """The maps that one model makes of one image, and the image as the model saw it: square, RGB."""

    model: str
    image: Image.Image
    stages: Sequence[MapOfStage]
    note: str = ""


def feature_sheet(rows: Sequence[MapsOfModel], how: How, *, title: str) -> Image.Image:
    """A page with a row for each model: the image, then its maps, finest first. Each cell of a map is a flat square."""
    cells, most = [], max(len(row.stages) for row in rows)
    for row in rows:
        panels = {"image": row.image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)}
        for missing in range(
            most - len(row.stages)
        ):  # a network without the finest map: coarser ones stay in line
            panels[" " * (missing + 1)] = Image.new("RGB", (_SIDE, _SIDE), PAPER)
        for stage in row.stages:
            channels, height, width = stage.values.shape
            panels[f"{stage.name} · {width} x {height} · {channels} ch."] = map_picture(stage.values, how)
        cells.append(Cell(side_by_side(panels), row.model, row.note))
    room = max(cell.picture.width for cell in cells), max(cell.picture.height for cell in cells)
    return contact_sheet(cells, room, columns=1, title=title, subtitle=WORDS[how])


def map_picture(values: NDArray[np.floating], how: How, side: int = _SIDE) -> Image.Image:
    """A map [channels, height, width] as an RGB picture of `side` pixels' width and height."""
    exact: NDArray[np.float64] = np.nan_to_num(values).astype(np.float64)
    if how == "components":
        return _enlarged(_components(exact), side)
    if how == "mean":
        return _enlarged(_colored(np.abs(exact).mean(axis=0)), side)
    order = np.argsort(-exact.reshape(len(exact), -1).var(axis=1), kind="stable")[:4].tolist()
    picture, half = Image.new("RGB", (side, side), PAPER), (side - _GAP) // 2
    for place, channel in enumerate(order):
        small = _enlarged(_colored(exact[channel]), half)
        picture.paste(small, (place % 2 * (half + _GAP), place // 2 * (half + _GAP)))
    return picture


def _components(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[height, width, 3]: the positions' coordinates along the directions in which they differ most.

    Of each direction the sign is such that its largest weight is positive, so that equal maps give equal colours.
    """
    channels, height, width = values.shape
    features = values.reshape(channels, -1).T
    features = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(features, full_matrices=False)
    directions = directions[:3]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    found = features @ (directions * signs[:, None]).T
    colors = np.zeros((height * width, 3))
    colors[:, : found.shape[1]] = found
    return np.stack([_spread(colors[:, at]) for at in range(3)], axis=1).reshape(height, width, 3)


def _colored(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """[height, width, 3] in viridis, whose brightness rises evenly for every kind of eye."""
    import matplotlib

    table = (
        (np.asarray(matplotlib.colormaps["viridis"](np.arange(256)))[:, :3] * 255).round().astype(np.uint8)
    )
    return table[_spread(values)]


def _spread(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Onto 0..255, without the outermost values; 128 where all are alike."""
    low, high = np.percentile(values, _TAILS)
    if high <= low:
        return np.full(values.shape, 128, np.uint8)
    return np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)


def _enlarged(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
