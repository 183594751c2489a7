"""ImageNet ReaL (Beyer et al., "Are we done with ImageNet?", arXiv:2006.07159): several right classes an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convmlp_platform.errors import DataError
from data_prep.storage.json_files import DamagedJson, read_json

NUM_IMAGES, NUM_CLASSES = 50_000, 1000
_KEY = re.compile(r"ILSVRC2012_val_(\d{8})")

RealLabels = list[list[int]]
"""Of each image of ImageNet's validation split, in the order of its number: class numbers, none where it has none."""


def read_real_labels(path: Path) -> RealLabels:
    """The published `real.json`: 50,000 lists of class numbers, for ILSVRC2012_val_00000001 onwards.

    Raises:
        DataError: it is missing, unreadable or something else.
    """
    try:
        labels = read_json(path, object)
    except FileNotFoundError:
        raise DataError(
            f"evaluate.real_labels: no file {path}: it is real.json of github.com/google-research/reassessed-imagenet"
        ) from None
    except (OSError, DamagedJson) as error:
        raise DataError(f"evaluate.real_labels: {path} can't be read: {error}") from None
    if not isinstance(labels, list) or len(labels) != NUM_IMAGES:
        size = f"a list of {len(labels):,}" if isinstance(labels, list) else f"a {type(labels).__name__}"
        raise DataError(
            f"evaluate.real_labels: {path} must hold a list of {NUM_IMAGES:,} lists, it is {size}"
        )
    for place, one in enumerate(labels):
        if not isinstance(one, list) or not all(_is_class(number) for number in one):
            raise DataError(
                f"evaluate.real_labels: {path}: entry {place} ({str(one)[:60]}) must be a list of class numbers "
                f"0..{NUM_CLASSES - 1}"
            )
    return labels


def _is_class(number: object) -> bool:
    return type(number) is int and 0 <= number < NUM_CLASSES


def real_accuracy(
    labels: RealLabels, keys: Sequence[str], predicted: NDArray[np.integer]
) -> tuple[float, int]:
    """The share of images whose predicted class is among its labels, and of how many images: those with labels.

    Args:
        keys: the samples' names, which hold `ILSVRC2012_val_00000001` to `...50000`.
        predicted: shape (images,).

    Raises:
        DataError: an image is none of ImageNet's validation split, or none has a label.
    """
    right = counted = 0
    for key, choice in zip(keys, predicted.tolist(), strict=True):
        accepted = labels[place_of(key)]
        counted += bool(accepted)
        right += choice in accepted
    if not counted:
        raise DataError("evaluate.real_labels: none of the images has a ReaL label")
    return right / counted, counted


def place_of(key: str) -> int:
    """The 0-based place of an image of ImageNet's validation split.

    Raises:
        DataError: the sample's name is no such image's.
    """
    match = _KEY.search(key)
    number = int(match[1]) if match else 0
    if not 1 <= number <= NUM_IMAGES:
        raise DataError(
            f"evaluate.real_labels: sample {key!r} is no image of ImageNet's validation split "
            f"(ILSVRC2012_val_00000001 to {NUM_IMAGES:08d}): leave real_labels out for other datasets"
        )
    return number - 1
