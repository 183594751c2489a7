"""Folders of image files in ImageNet's layout: one folder a class, with or without split folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_prep.config import ImageFolderSource
from data_prep.dataset.checksums import order_key
from data_prep.errors import DataPrepError
from data_prep.sources.parsing.source_folder import (
    expect_inside,
    file_keys,
    inside_of,
    read_text,
    unicode_twins,
)
from data_prep.sources.source import Listing, SampleRef
from data_prep.storage.files import read_file

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_OTHER_SUFFIXES = {
    ".arw", ".avif", ".cr2", ".cr3", ".dds", ".dib", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k",
    ".jfif", ".jif", ".jp2", ".jpe", ".jxl", ".jxr", ".mpo", ".nef", ".orf", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm",
    ".psd", ".raw", ".rw2", ".svg", ".tga", ".tif", ".tiff", ".xbm",
}  # fmt: skip
"""Of images that somebody meant to be there: they are samples, and what isn't read is rejected, never passed over."""
_TAKEN = IMAGE_SUFFIXES | _OTHER_SUFFIXES
_DEFAULT_SPLITS = {"train": "train", "val": "val"}
_SPLIT_SEED = 0
_SHOWN = 5


def open_source(config: ImageFolderSource) -> ImageFolder:
    """The folder of a configuration."""
    return ImageFolder(
        config.path,
        splits=config.splits,
        val_fraction=config.val_fraction,
        class_names=config.class_names,
        follow_links=config.follow_links,
    )


class ImageFolder:
    """`<root>/<split folder>/<class>/**/<file>`, or `<root>/<class>/**/<file>` with `val_fraction`.

    Labels are positions in the sorted class folder names, as in torchvision's ImageFolder, and like there a folder
    without images is an error: as a class it would shift the labels of all after it. Files that are no images are
    passed over and noted, hidden ones are passed over; a link that leaves the root is an error without `follow_links`.
    """

    def __init__(
        self,
        root: Path,
        *,
        splits: Mapping[str, str] | None = None,
        val_fraction: float | None = None,
        class_names: Path | None = None,
        follow_links: bool = False,
    ) -> None:
        self.root = root.expanduser()
        self._root_text = str(self.root)
        if not self.root.is_dir():
            raise DataPrepError(f"source.path: {root} is not a folder")
        self._real_root = inside_of(self.root, follow_links=follow_links)
        self._splits = dict(splits or _DEFAULT_SPLITS) if val_fraction is None else {}
        self._val_fraction = val_fraction
        self._class_names = self.root / class_names.expanduser() if class_names else None

    def listing(self) -> Listing:
        """All image files, without opening them."""
        self._no_images, self._unread = Counter[str](), list[str]()
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
        return Listing(classes, splits, notes=tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        if self._no_images:
            most = sorted(self._no_images.items(), key=lambda one: (-one[1], one[0]))[:_SHOWN]
            kinds = ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in most)
            yield f"{self._no_images.total():,} files in class folders are no images and were passed over: {kinds}"
        if self._unread:
            shown = ", ".join(self._unread[:_SHOWN]) + ", ..." * (len(self._unread) > _SHOWN)
            lie = "images or folders lie in no class folder of a split and were passed over"
            yield f"{len(self._unread):,} {lie}: {shown}"

    def read(self, ref: SampleRef) -> bytes:
        """The file's bytes, untouched."""
        return read_file(f"{self._root_text}/{ref.location}")

    def files(self, ref: SampleRef) -> tuple[str]:
        """The sample's file."""
        return (f"{self._root_text}/{ref.location}",)

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
            per_split[split] = (folder, self._class_files(folder))
        self._count_unread()
        reference = per_split["train" if "train" in per_split else next(iter(per_split))][1]
        for folder, found in per_split.values():
            unknown = sorted(found.keys() - reference.keys())
            if twins := unicode_twins(unknown, reference):
                raise DataPrepError(
                    f"{folder} has class folders that another split lacks: {', '.join(unknown[:_SHOWN])}{twins}"
                )
        classes = _classes(per_split.values())
        return classes, {
            split: self._refs(folder, found, classes) for split, (folder, found) in per_split.items()
        }

    def _list_and_split(self, fraction: float) -> tuple[list[str], dict[str, list[SampleRef]]]:
        found = self._class_files(self.root)
        classes = _classes([(self.root, found)])
        refs = self._refs(self.root, found, classes)
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

    def _class_files(self, folder: Path) -> dict[str, list[str]]:
        """Class folder → its images, as paths from `folder` on."""
        found = {}
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found[entry.name] = list(self._images(folder / entry.name, entry.name, frozenset()))
            elif _suffix(entry.name) in _TAKEN:
                self._unread.append(f"{self._inside(folder)}{entry.name}")
        if not found:
            raise DataPrepError(f"{folder} has no class folders: expected {folder}/<class>/<image file>")
        return found

    def _count_unread(self) -> None:
        """Look at what stands beside the split folders."""
        splits = {Path(name).parts[0] for name in self._splits.values()}
        for entry in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name in splits:
                continue
            if entry.is_dir():
                self._unread.append(f"{entry.name}/")
            elif _suffix(entry.name) in _TAKEN:
                self._unread.append(entry.name)

    def _inside(self, folder: Path) -> str:
        return "" if folder == self.root else f"{folder.relative_to(self.root).as_posix()}/"

    def _refs(self, folder: Path, found: dict[str, list[str]], classes: list[str]) -> list[SampleRef]:
        label = {name: i for i, name in enumerate(classes)}
        files = [(file, label[name]) for name, listed in found.items() for file in listed]
        keys = file_keys([file for file, _ in files])
        inside = self._inside(folder)
        return sorted(
            SampleRef(key, number, f"{inside}{file}") for key, (file, number) in zip(keys, files, strict=True)
        )

    def _images(self, folder: Path, inside: str, above: frozenset[Path]) -> Iterator[str]:
        """Paths from the class folders' parent on, as text: a `Path` a file would take most of the listing."""
        real = self._check_inside(folder)
        if real in above:
            raise DataPrepError(f"{folder} links to a folder that holds it: remove the loop")
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                yield from self._images(folder / name, f"{inside}/{name}", above | {real})
            elif (suffix := _suffix(name)) not in _TAKEN:
                self._no_images[suffix] += 1
            else:
                if entry.is_symlink():
                    self._check_inside(folder / name)
                if not entry.is_file():
                    raise DataPrepError(
                        f"{folder / name} is neither a file nor a folder, or a broken link: remove it"
                    )
                yield f"{inside}/{name}"

    def _check_inside(self, path: Path) -> Path:
        return expect_inside(path, self._real_root)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _classes(splits: Iterable[tuple[Path, dict[str, list[str]]]]) -> list[str]:
    """Names of the class folders, sorted, of all splits: each holds images in one of them.

    Raises:
        DataPrepError: one holds none, while others do.
    """
    listed = list(splits)
    used = {name for _, found in listed for name, files in found.items() if files}
    for folder, found in listed:
        if (empty := [name for name in found if name not in used]) and used:
            raise DataPrepError(
                f"{folder} has {len(empty)} class folders without images: {', '.join(empty[:_SHOWN])}; remove them: "
                "each would be a class, and shift the labels of the others"
            )
    return sorted(used) or sorted({name for _, found in listed for name in found})


def _readable(folders: list[str], mapping: Path) -> list[str]:
    """Readable class names; the first of several synonyms, told apart by folder where two agree."""
    names = {}
    for line in read_text(mapping, "source.class_names").split("\n"):
        folder, _, name = line.strip().partition(" ")
        names[folder] = name.split(",")[0].strip()
    if missing := [folder for folder in folders if not names.get(folder)]:
        raise DataPrepError(
            f"source.class_names: {mapping} has no name for {len(missing)} class folders: "
            f"{', '.join(missing[:3])}{unicode_twins(missing, names)}; expected lines of '<class folder> <name>'"
        )
    uses = Counter(names[folder] for folder in folders)
    return [names[f] if uses[names[f]] == 1 else f"{names[f]} ({f})" for f in folders]
