"""Oxford Flowers-102 (Nilsback and Zisserman, "Automated Flower Classification over a Large Number of Classes",
2008) as published: an archive of JPEG files, and MATLAB files with labels and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.config import Flowers102Source
from data_prep.errors import DataPrepError
from data_prep.sources.archives.published import (
    PublishedFile,
    Unpacked,
    ensure_unpacked,
    expect_md5,
    fetch,
    missing_files,
)
from data_prep.sources.parsing.mat_file import read_numbers
from data_prep.sources.source import Listing, SampleRef
from data_prep.storage.files import read_file

_ARCHIVE, _FOLDER = "102flowers.tgz", "jpg"
_LABELS, _SPLIT_IDS = "imagelabels.mat", "setid.mat"
_SPLITS = {"train": "trnid", "val": "valid", "test": "tstid"}
_SIZES = {_ARCHIVE: "345 MB", _LABELS: "1 kB", _SPLIT_IDS: "15 kB"}


def open_source(config: Flowers102Source) -> Flowers102:
    """Flowers-102 at `path`, or in the folder flowers-102 there, as torchvision lays it out.

    Raises:
        DataPrepError: files are missing, and fetching is not asked for.
    """
    path = config.path.expanduser()
    inner = path / "flowers-102"
    root = inner if (inner / _SPLIT_IDS).is_file() else path
    absent = [name for name in (_LABELS, _SPLIT_IDS) if not (root / name).is_file()]
    if not (root / _FOLDER).is_dir() and not (root / _ARCHIVE).is_file():
        absent.insert(0, _ARCHIVE)
    if absent and not config.download:
        otherwise = f"the unpacked folder {_FOLDER}/ for {_ARCHIVE}"
        raise missing_files("Flowers-102", root, [_published()[name] for name in absent], otherwise=otherwise)
    return Flowers102(root, config)


class Flowers102:
    """The published files; keys are `image_<number>`, counted from 1 as in the publisher's tables."""

    def __init__(self, root: Path, config: Flowers102Source) -> None:
        self._root = root
        self._config = config

    def listing(self) -> Listing:
        """Fetches and unpacks what is missing as far as the job allows; the three published splits."""
        self._ensure_tables()
        labels = self._numbers(_LABELS, "labels")["labels"]
        ids = self._numbers(_SPLIT_IDS, *_SPLITS.values())
        classes = list(_torchvision().classes)
        self._expect_sound(labels, ids, len(classes))
        ensure_unpacked(
            "Flowers-102",
            Unpacked(self._root / _FOLDER, self._root / _ARCHIVE),
            [_file(number) for numbers in ids.values() for number in numbers],
            lambda: _published()[_ARCHIVE],
            download=self._config.download,
            check_md5=self._config.check_md5,
        )
        return Listing(
            classes,
            {
                split: [
                    SampleRef(_file(number)[:-4], labels[number - 1] - 1, f"{_FOLDER}/{_file(number)}")
                    for number in sorted(ids[variable])
                ]
                for split, variable in _SPLITS.items()
            },
        )

    def read(self, ref: SampleRef) -> bytes:
        """The file's bytes, untouched."""
        return read_file(f"{self._root}/{ref.location}")

    def files(self, ref: SampleRef) -> tuple[str]:
        """The sample's file."""
        return (f"{self._root}/{ref.location}",)

    def _ensure_tables(self) -> None:
        published = _published()
        for name in (_LABELS, _SPLIT_IDS):
            if not (self._root / name).is_file() and self._config.download:
                fetch(published[name], self._root)
            elif self._config.check_md5:
                expect_md5(self._root / name, published[name].md5)

    def _numbers(self, file: str, *names: str) -> dict[str, list[int]]:
        try:
            content = (self._root / file).read_bytes()
        except OSError as error:
            raise DataPrepError(f"can't read {self._root / file}: {error.strerror}") from None
        return read_numbers(content, str(self._root / file), *names)

    def _expect_sound(self, labels: list[int], ids: dict[str, list[int]], num_classes: int) -> None:
        if stray := [label for label in labels if not 1 <= label <= num_classes]:
            raise DataPrepError(f"{self._root / _LABELS}: label {stray[0]} is not within 1 to {num_classes}")
        numbers = sorted(number for split in ids.values() for number in split)
        where = self._root / _SPLIT_IDS
        if len(set(numbers)) != len(numbers):
            raise DataPrepError(f"{where} names an image twice")
        if not all(ids.values()) or numbers[0] < 1 or numbers[-1] > len(labels):
            raise DataPrepError(
                f"{where} does not split images 1 to {len(labels)}, which {_LABELS} labels, in three"
            )


def _file(number: int) -> str:
    return f"image_{number:05d}.jpg"


def _torchvision() -> Any:
    from torchvision.datasets import Flowers102 as Published  # 4 s of import that workers don't need

    return Published


def _published() -> dict[str, PublishedFile]:
    """URLs and sums by file name."""
    dataset = _torchvision()
    return {
        name: PublishedFile(name, _SIZES[name], dataset._download_url_prefix + name, md5)
        for name, md5 in dataset._file_dict.values()
    }
