"""scikit-learn's handwritten digits: 1,797 real 8×8 images in 10 classes that need no download.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_prep.config import DigitsSource
from data_prep.dataset.checksums import order_key
from data_prep.sources.source import Listing, SampleRef

_VAL_SHARE = 5
"""One in five of every class is held out."""
_SPLIT_SEED = 0


@lru_cache(maxsize=1)
def _load() -> tuple[NDArray[np.uint8], list[int]]:
    from sklearn.datasets import load_digits  # 1 s of import that other sources don't need

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # published values are 0..16
    return pixels, [int(label) for label in digits.target]


class Digits:
    """The digits as a source; the split depends on nothing but the samples' names."""

    def listing(self) -> Listing:
        """`train` holds four fifths of every class, `val` the rest."""
        _, labels = _load()
        splits: dict[str, list[SampleRef]] = {"train": [], "val": []}
        for digit in range(10):
            refs = [SampleRef(f"{i:04d}", digit, str(i)) for i, label in enumerate(labels) if label == digit]
            refs.sort(key=lambda ref: order_key(_SPLIT_SEED, ref.key))
            held_out = round(len(refs) / _VAL_SHARE)
            splits["val"] += refs[:held_out]
            splits["train"] += refs[held_out:]
        return Listing([str(digit) for digit in range(10)], {k: sorted(v) for k, v in splits.items()})

    def read(self, ref: SampleRef) -> NDArray[np.uint8]:
        """Greyscale pixels, shape (8, 8)."""
        return _load()[0][int(ref.location)]


def open_source(_config: DigitsSource) -> Digits:
    """The digits; there is nothing to configure."""
    return Digits()
