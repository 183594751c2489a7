"""CIFAR-10 and CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).

Their published files are Python pickles, which can run any code when loaded: their MD5 sums are checked, and they
are read by a machine of our own that knows nothing but arrays.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.config import Cifar10Source, Cifar100Source
from data_prep.errors import DataPrepError
from data_prep.sources.archives.published import (
    PublishedFile,
    ensure_unpacked,
    expect_md5,
    locate,
    missing_unpacked,
)
from data_prep.sources.image_folder import ImageFolder
from data_prep.sources.parsing.plain_pickle import MAX_BYTES, load_plain_pickle
from data_prep.sources.source import Listing, SampleRef, Source


class _Cifar(NamedTuple):
    """One of the two datasets as published."""

    name: str
    folder: str
    archive: str
    splits: dict[str, list[str]]
    meta: str
    size: str = "170 MB"


_CIFAR10 = _Cifar(
    "CIFAR-10",
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    {"train": [f"data_batch_{i}" for i in range(1, 6)], "val": ["test_batch"]},
    "batches.meta",
)
_CIFAR100 = _Cifar(
    "CIFAR-100", "cifar-100-python", "cifar-100-python.tar.gz", {"train": ["train"], "val": ["test"]}, "meta"
)


def open_source(config: Cifar10Source | Cifar100Source) -> Source:
    """The source for whichever of the known layouts lies at `path`.

    Raises:
        DataPrepError: none does, and fetching is not asked for.
    """
    path = config.path.expanduser()
    pickles = CifarPickles(path, config)
    if not pickles.is_there() and (path / "train").is_dir() and (path / "test").is_dir():
        return ImageFolder(path, splits={"train": "train", "val": "test"})
    pickles.expect_some()
    return pickles


class CifarPickles:
    """The published pickles; keys are `<batch>-<position>`, pixels (32, 32, 3) as published."""

    def __init__(self, path: Path, config: Cifar10Source | Cifar100Source) -> None:
        self._config = config
        self._cifar = _CIFAR10 if config.kind == "cifar10" else _CIFAR100
        self._labels = (config.labels if isinstance(config, Cifar100Source) else "") + "_labels"
        self._labels = self._labels.removeprefix("_")
        first = self._cifar.splits["train"][0]
        self._place = locate(path, self._cifar.folder, self._cifar.archive, first)

    def is_there(self) -> bool:
        """Is the archive or its folder at the source's path?"""
        return self._place.is_there()

    def expect_some(self) -> None:
        """Raises DataPrepError where there is nothing to begin with."""
        if not self.is_there() and not self._config.download:
            raise missing_unpacked(self._cifar.name, self._place, self._published())

    def listing(self) -> Listing:
        """Fetches and unpacks what is missing as far as the job allows, then reads all labels: about 180 MB."""
        batches = [name for names in self._cifar.splits.values() for name in names]
        files = [*batches, self._cifar.meta]
        ensure_unpacked(
            self._cifar.name,
            self._place,
            files,
            self._published,
            download=self._config.download,
            check_md5=self._config.check_md5,
        )
        if self._config.check_md5:
            for name, md5 in self._published_md5().items():
                expect_md5(self._place.folder / name, md5)
        classes = self._classes()
        splits = {
            split: [ref for name in names for ref in self._refs(name, len(classes))]
            for split, names in self._cifar.splits.items()
        }
        return Listing(classes, {split: sorted(refs) for split, refs in splits.items()})

    def read(self, ref: SampleRef) -> NDArray[np.uint8]:
        """Pixels as published, never re-encoded."""
        batch, _, position = ref.location.rpartition(":")
        planes = self._batch(batch)[0][int(position)].reshape(3, 32, 32)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def _refs(self, batch: str, num_classes: int) -> list[SampleRef]:
        labels = self._batch(batch)[1]
        if stray := [label for label in labels if not 0 <= label < num_classes]:
            raise DataPrepError(
                f"{self._place.folder / batch}: label {stray[0]} is not among the {num_classes} classes"
            )
        return [SampleRef(f"{batch}-{i:05d}", label, f"{batch}:{i}") for i, label in enumerate(labels)]

    def _batch(self, name: str) -> tuple[NDArray[np.uint8], list[int]]:
        path = self._place.folder / name
        status = path.stat()
        return _load_batch(path, self._labels.encode(), status.st_mtime_ns, status.st_size)

    def _classes(self) -> list[str]:
        path = self._place.folder / self._cifar.meta
        key = self._labels.removesuffix("s").encode() + b"_names"
        names = load_plain_pickle(_read(path), where=str(path)).get(key)
        if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
            raise DataPrepError(f"{path} has no list of class names {key.decode()!r}")
        return [name.decode(errors="replace") for name in names]

    def _published(self) -> PublishedFile:
        dataset = self._torchvision()
        return PublishedFile(self._cifar.archive, self._cifar.size, dataset.url, dataset.tgz_md5)

    def _published_md5(self) -> dict[str, str]:
        dataset = self._torchvision()
        return dict([*dataset.train_list, *dataset.test_list]) | {
            dataset.meta["filename"]: dataset.meta["md5"]
        }

    def _torchvision(self) -> Any:
        """The class that knows URLs and sums; its import takes 4 s, which workers don't need."""
        from torchvision import datasets

        return datasets.CIFAR10 if self._cifar is _CIFAR10 else datasets.CIFAR100


@lru_cache(maxsize=6)
def _load_batch(
    path: Path, labels_key: bytes, _mtime: int, _size: int
) -> tuple[NDArray[np.uint8], list[int]]:
    """A batch's images (n, 3072), plane after plane, and labels. All batches stay in memory, 184 MB a process:
    the samples of a shard come from all of them."""
    content = load_plain_pickle(_read(path), where=str(path))
    data: Any = content.get(b"data")
    labels: Any = content.get(labels_key)
    plain = isinstance(data, np.ndarray) and data.dtype == np.uint8 and isinstance(labels, list)
    if not plain or data.shape != (len(labels), 3072) or not all(isinstance(label, int) for label in labels):
        raise DataPrepError(f"{path} does not hold CIFAR images and {labels_key.decode()}")
    return data, labels


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # what is longer is refused
    except OSError as error:
        raise DataPrepError(f"can't read {path}: {error.strerror}") from None
