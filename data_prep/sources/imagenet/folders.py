"""ImageNet as folders: one a class for both splits, or as Kaggle ships it with a flat folder of validation images."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.errors import DataPrepError
from data_prep.sources.image_folder import IMAGE_SUFFIXES
from data_prep.sources.imagenet.imagenet import ImageNetFile
from data_prep.sources.parsing.source_folder import expect_inside, inside_of, read_class_lines, read_text
from data_prep.storage.files import read_file

_MAPPING, _SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"


class _Folders:
    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self._root = root
        self._real_root = inside_of(root, follow_links=follow_links)

    def read(self, location: str) -> bytes:
        """The file's bytes."""
        return read_file(f"{self._root}/{location}")


class ClassFolders(_Folders):
    """`{train,val}/<wnid>/*.JPEG`."""

    def files(self) -> tuple[list[ImageNetFile], list[ImageNetFile]]:
        """Both splits."""
        if not (self._root / "val").is_dir():
            raise DataPrepError(f"source.path: {self._root} has train/ but no val/<wnid>/*.JPEG beside it")
        flat = next(_images(self._root, Path("val"), self._real_root), None)
        if flat and not any(entry.is_dir() for entry in os.scandir(self._root / "val")):
            raise DataPrepError(
                f"source.path: {self._root / 'val'} is flat (such as {flat.name}): move its images into "
                "val/<wnid>/, or keep the published ILSVRC2012_img_val.tar and devkit, whose ground truth says "
                "what they show"
            )
        train, val = (_class_folders(self._root, Path(name), self._real_root) for name in ("train", "val"))
        return train, val

    def synsets(self) -> Mapping[str, str]:
        """From LOC_synset_mapping.txt where it lies beside train/."""
        return _mapping(self._root / _MAPPING) if (self._root / _MAPPING).is_file() else {}


class KaggleFolders(_Folders):
    """`ILSVRC/Data/CLS-LOC/{train/<wnid>,val}/*.JPEG`, LOC_val_solution.csv and LOC_synset_mapping.txt."""

    def files(self) -> tuple[list[ImageNetFile], list[ImageNetFile]]:
        """Both splits; what a validation image shows is told by LOC_val_solution.csv."""
        data = Path("ILSVRC/Data/CLS-LOC")
        if not (self._root / data).is_dir():
            data = Path("Data/CLS-LOC")
        absent = [str(data / name) for name in ("train", "val") if not (self._root / data / name).is_dir()]
        absent += [name for name in (_SOLUTION, _MAPPING) if not (self._root / name).is_file()]
        if absent:
            raise DataPrepError(
                f"source.path: {self._root} lacks {', '.join(absent)}: unpack Kaggle's "
                "imagenet-object-localization-challenge.zip there, with its csv and txt files"
            )
        return _class_folders(self._root, data / "train", self._real_root), self._val(data / "val")

    def synsets(self) -> Mapping[str, str]:
        """From LOC_synset_mapping.txt."""
        return _mapping(self._root / _MAPPING)

    def _val(self, folder: Path) -> list[ImageNetFile]:
        solution = _read_solution(self._root / _SOLUTION)
        paths = list(_images(self._root, folder, self._real_root))
        files = {path.stem: path for path in paths}
        if len(files) != len(paths):
            twin = next(path for path in paths if files[path.stem] != path)
            raise DataPrepError(
                f"{self._root / twin} and {self._root / files[twin.stem]} have the same image id"
            )
        for absent, place, other in (
            (sorted(set(files) - set(solution)), _SOLUTION, "the folder"),
            (sorted(set(solution) - set(files)), str(folder), _SOLUTION),
        ):
            if absent:
                raise DataPrepError(
                    f"{self._root / place} lacks {len(absent):,} of the images in {other}, such as {absent[0]}"
                )
        return [ImageNetFile(path.name, solution[stem], str(path)) for stem, path in files.items()]


def _class_folders(root: Path, folder: Path, real_root: Path | None) -> list[ImageNetFile]:
    wnids = sorted(
        entry.name for entry in os.scandir(root / folder) if entry.is_dir() and entry.name[0] != "."
    )
    files = []
    for wnid in wnids:
        found = [ImageNetFile(path.name, wnid, str(path)) for path in _images(root, folder / wnid, real_root)]
        if not found:
            raise DataPrepError(f"{root / folder / wnid} holds no images: complete or remove it")
        files += found
    return files


def _images(root: Path, folder: Path, real_root: Path | None) -> Iterator[Path]:
    """Image files of one folder, relative to `root`; no link may lead out of `real_root`, where there is one."""
    expect_inside(root / folder, real_root)
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or f".{entry.name.rpartition('.')[2].lower()}" not in IMAGE_SUFFIXES:
            continue
        if entry.is_symlink():
            expect_inside(root / folder / entry.name, real_root)
        yield folder / entry.name


def _mapping(path: Path) -> dict[str, str]:
    return read_class_lines(read_text(path))


def _read_solution(path: Path) -> dict[str, str]:
    """Image id → wnid: `ILSVRC2012_val_00048981,n03995372 85 1 499 272 ...`."""
    solution, text = {}, read_text(path)
    try:
        for row in csv.DictReader(io.StringIO(text)):
            solution[row["ImageId"]] = row["PredictionString"].split()[0]
    except (csv.Error, KeyError, IndexError, AttributeError) as error:
        raise DataPrepError(
            f"{path} is not Kaggle's table of ImageId and PredictionString ({type(error).__name__}: {error})"
        ) from None
    return solution
