"""STL-10 (Coates, Ng and Lee, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", 2011).

Its binary files hold one image after the other as uint8 of shape (3, 96, 96): colour, column, row. The 100,000
unlabelled images are left out: the tasks here have labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.config import Stl10Source
from data_prep.errors import DataPrepError
from data_prep.sources.archives.archive_bytes import ByteRanges, range_location
from data_prep.sources.archives.published import (
    PublishedFile,
    Unpacked,
    ensure_unpacked,
    expect_md5,
    locate,
    missing_unpacked,
)
from data_prep.sources.parsing.source_folder import read_text
from data_prep.sources.source import Listing, SampleRef

_FOLDER, _ARCHIVE = "stl10_binary", "stl10_binary.tar.gz"
_SPLITS = {"train": "train", "val": "test"}
_CLASS_NAMES = "class_names.txt"
_FILES = [f"{part}_{kind}.bin" for part in _SPLITS.values() for kind in "Xy"] + [_CLASS_NAMES]
_SIDE = 96
_IMAGE_BYTES = 3 * _SIDE * _SIDE


def open_source(config: Stl10Source) -> Stl10:
    """STL-10 at `path`: the archive, its folder, or the folder around either.

    Raises:
        DataPrepError: there is none, and fetching is not asked for.
    """
    place = locate(config.path.expanduser(), _FOLDER, _ARCHIVE, _FILES[0])
    if not place.is_there() and not config.download:
        raise missing_unpacked("STL-10", place, _published())
    return Stl10(place, config)


class Stl10:
    """The published binary files; keys are `train-<position>` and `test-<position>`. One image is read at a time."""

    def __init__(self, place: Unpacked, config: Stl10Source) -> None:
        self._config = config
        self._place = place
        self._ranges = ByteRanges(self._place.folder, {})

    def listing(self) -> Listing:
        """Fetches and unpacks what is missing as far as the job allows; 2.6 GB packed, 0.36 GB are unpacked."""
        ensure_unpacked(
            "STL-10",
            self._place,
            _FILES,
            _published,
            download=self._config.download,
            check_md5=self._config.check_md5,
        )
        if self._config.check_md5:
            for name, md5 in _published_md5().items():
                expect_md5(self._place.folder / name, md5)
        classes = read_text(self._place.folder / _CLASS_NAMES).split()
        return Listing(classes, {split: self._refs(part, len(classes)) for split, part in _SPLITS.items()})

    def read(self, ref: SampleRef) -> NDArray[np.uint8]:
        """Pixels as published, shape (96, 96, 3)."""
        stored = np.frombuffer(self._ranges.read(ref.location), np.uint8)
        return np.ascontiguousarray(stored.reshape(3, _SIDE, _SIDE).transpose(2, 1, 0))

    def _refs(self, part: str, num_classes: int) -> list[SampleRef]:
        images, labels_file = f"{part}_X.bin", f"{part}_y.bin"
        labels = (self._place.folder / labels_file).read_bytes()
        size = (self._place.folder / images).stat().st_size
        if size != len(labels) * _IMAGE_BYTES or not labels:
            raise DataPrepError(
                f"{self._place.folder / images} has {size:,} bytes, the {len(labels):,} labels in {labels_file} "
                f"call for {len(labels) * _IMAGE_BYTES:,}: one of them is cut short or from elsewhere"
            )
        if not 1 <= min(labels) <= max(labels) <= num_classes:
            raise DataPrepError(
                f"{self._place.folder / labels_file} has labels {min(labels)} to {max(labels)}, "
                f"{_CLASS_NAMES} has {num_classes} classes, counted from 1"
            )
        return [
            SampleRef(f"{part}-{i:05d}", label - 1, range_location(images, i * _IMAGE_BYTES, _IMAGE_BYTES))
            for i, label in enumerate(labels)
        ]


def _torchvision() -> Any:
    from torchvision.datasets import STL10  # 4 s of import that workers don't need

    return STL10


def _published() -> PublishedFile:
    return PublishedFile(_ARCHIVE, "2.6 GB", _torchvision().url, _torchvision().tgz_md5)


def _published_md5() -> dict[str, str]:
    known = dict([*_torchvision().train_list, *_torchvision().test_list])
    return {name: md5 for name, md5 in known.items() if name in _FILES}
