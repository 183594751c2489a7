"""Folders of image files in ImageNet's layout: one folder a class, with or without split folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from data_prep.digest import order_key
from data_prep.errors import DataPrepError
from data_prep.source_config import ImageFolderSource
from data_prep.sources.base import Listing, SampleRef

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_DEFAULT_SPLITS = {"train": "train", "val": "val"}
_SPLIT_SEED = 0


def open_source(config: ImageFolderSource) -> ImageFolder:
    """The folder of a configuration."""
    return ImageFolder(
        config.path, splits=config.splits, val_fraction=config.val_fraction, class_names=config.class_names
    )


class ImageFolder:
    """`<root>/<split folder>/<class>/**/<file>`, or `<root>/<class>/**/<file>` with `val_fraction`.

    Labels are positions in the sorted class folder names, as in torchvision's ImageFolder. Files of
    other kinds and hidden ones are passed over; a link that leaves the root is an error.
    """

    def __init__(
        self,
        root: Path,
        *,
        splits: Mapping[str, str] | None = None,
        val_fraction: float | None = None,
        class_names: Path | None = None,
    ) -> None:
        self.root = root.expanduser()
        if not self.root.is_dir():
            raise DataPrepError(f"source.path: {root} is not a folder")
        self._splits = dict(splits or _DEFAULT_SPLITS) if val_fraction is None else {}
        self._val_fraction = val_fraction
        self._class_names = self.root / class_names.expanduser() if class_names else None

    def listing(self) -> Listing:
        """All image files, without opening them."""
        self._real_root = self.root.resolve()
        if self._val_fraction is None:
            folders, splits = self._list_splits()
        else:
            folders, splits = self._list_and_split(self._val_fraction)
        for split, refs in splits.items():
            if not refs:
                raise DataPrepError(
                    f"split {split!r} of {self.root} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})"
                )
        classes = _readable(folders, self._class_names) if self._class_names else folders
        return Listing(classes, splits)

    def read(self, ref: SampleRef) -> bytes:
        """The file's bytes, untouched."""
        return (self.root / ref.location).read_bytes()

    def _list_splits(self) -> tuple[list[str], dict[str, list[SampleRef]]]:
        per_split = {}
        for split, name in self._splits.items():
            folder = self.root / name
            if not folder.is_dir():
                raise DataPrepError(
                    f"source.splits.{split}: {folder} is not a folder; name the split folders under "
                    "source.splits, or set source.val_fraction for a folder of classes without splits"
                )
            self._check_inside(folder)
            per_split[split] = (folder, self._class_folders(folder))
        reference = "train" if "train" in per_split else next(iter(per_split))
        classes = per_split[reference][1]
        for folder, found in per_split.values():
            if unknown := sorted(set(found) - set(classes)):
                raise DataPrepError(
                    f"{folder} has {len(unknown)} class folders that split {reference!r} lacks: "
                    f"{', '.join(unknown[:3])}"
                )
        refs = {
            split: self._list_classes(folder, found, classes) for split, (folder, found) in per_split.items()
        }
        return classes, refs

    def _list_and_split(self, fraction: float) -> tuple[list[str], dict[str, list[SampleRef]]]:
        classes = self._class_folders(self.root)
        refs = self._list_classes(self.root, classes, classes)
        if not fraction:
            return classes, {"train": refs}
        threshold = int(fraction * 2**64)
        held_out = {
            ref for ref in refs if int.from_bytes(order_key(_SPLIT_SEED, ref.key)[:8], "little") < threshold
        }
        return classes, {
            "train": [ref for ref in refs if ref not in held_out],
            "val": [ref for ref in refs if ref in held_out],
        }

    def _class_folders(self, folder: Path) -> list[str]:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
        if not names:
            raise DataPrepError(f"{folder} has no class folders: expected {folder}/<class>/<image file>")
        return names

    def _list_classes(self, folder: Path, found: list[str], classes: list[str]) -> list[SampleRef]:
        label = {name: i for i, name in enumerate(classes)}
        files = [
            (file.relative_to(folder), label[name])
            for name in found
            for file in self._images(folder / name, frozenset())
        ]
        stems = Counter(path.with_suffix("") for path, _ in files)
        refs = [
            SampleRef(
                # a.jpg beside a.png: the suffix becomes part of both names
                _key(path if stems[path.with_suffix("")] > 1 else path.with_suffix("")),
                number,
                str(folder.relative_to(self.root) / path),
            )
            for path, number in files
        ]
        return sorted(refs)

    def _images(self, folder: Path, above: frozenset[Path]) -> Iterator[Path]:
        real = self._check_inside(folder)
        if real in above:
            raise DataPrepError(f"{folder} links to a folder that holds it: remove the loop")
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if entry.is_dir():
                yield from self._images(path, above | {real})
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                if entry.is_symlink():
                    self._check_inside(path)
                yield path

    def _check_inside(self, path: Path) -> Path:
        real = path.resolve()
        if not real.is_relative_to(self._real_root):
            raise DataPrepError(
                f"{path} leads out of source.path to {real}: copy the files in, or point source.path at "
                "the folder that holds them all"
            )
        return real


def _key(path: Path) -> str:
    """A reversible ASCII name without dots: webdataset splits a member's name at its first dot."""
    return quote(os.fsencode(path), safe="/").replace(".", "%2E")


def _readable(folders: list[str], mapping: Path) -> list[str]:
    """Readable class names; the first of several synonyms, told apart by folder where two agree."""
    try:
        lines = mapping.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataPrepError(f"source.class_names: can't read {mapping}: {error}") from None
    names = {}
    for line in lines:
        folder, _, name = line.strip().partition(" ")
        names[folder] = name.split(",")[0].strip()
    if missing := [folder for folder in folders if not names.get(folder)]:
        raise DataPrepError(
            f"source.class_names: {mapping} has no name for {len(missing)} class folders: "
            f"{', '.join(missing[:3])}; expected lines of '<class folder> <name>'"
        )
    uses = Counter(names[folder] for folder in folders)
    return [names[f] if uses[names[f]] == 1 else f"{names[f]} ({f})" for f in folders]
