"""ADE20K SceneParse150, and any set in its layout: images and 8-bit PNG masks of the same names.

Layout and table: http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip). Mask value 0 is ignored, value k is
class k of the table, and so label k - 1.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from data_prep.config import Ade20kSource
from data_prep.errors import DataPrepError, RejectedSample
from data_prep.images.masks import check_mask
from data_prep.sources.image_folder import IMAGE_SUFFIXES
from data_prep.sources.parsing.source_folder import (
    expect_inside,
    file_keys,
    inside_of,
    read_text,
    readable_classes,
)
from data_prep.sources.source import Listing, SampleRef

_ARCHIVE_FOLDER = "ADEChallengeData2016"
_IMAGES, _MASKS = "images", "annotations"
_MAX_CLASSES = 255


def open_source(config: Ade20kSource) -> Ade20k:
    """The folder of a configuration."""
    return Ade20k(config.path, dict(config.splits), config.class_names, follow_links=config.follow_links)


class Ade20k:
    """`<root>/images/<split folder>/**/*` with `<root>/annotations/<split folder>/**/*.png` and a table of classes.

    An image without a mask, or a mask without an image, is listed and then rejected with that reason.

    Args:
        root: the folder.
        splits: split name → folder.
        class_names: the table, `objectInfo*.txt`: tab-separated, its first column Idx, its last column Name.
        follow_links: links may lead out of the root.
    """

    def __init__(
        self,
        root: Path,
        splits: dict[str, str],
        class_names: Path | None = None,
        *,
        follow_links: bool = False,
    ) -> None:
        self.root = root.expanduser()
        if not self.root.is_dir():
            raise DataPrepError(f"source.path: {root} is not a folder")
        if (self.root / _ARCHIVE_FOLDER).is_dir():
            raise DataPrepError(f"source.path: name the folder {self.root / _ARCHIVE_FOLDER} itself")
        if not splits:
            raise DataPrepError("source.splits must name at least one split")
        self._splits = splits
        self._real_root = inside_of(self.root, follow_links=follow_links)
        self._classes = read_classes(self._table(class_names))

    def listing(self) -> Listing:
        """All images and masks, without opening them."""
        return Listing(
            classes=self._classes,
            splits={split: self._refs(split, folder) for split, folder in self._splits.items()},
            task="segmentation",
            class_ids=list(range(1, len(self._classes) + 1)),
        )

    def read(self, ref: SampleRef) -> bytes:
        """The image file's bytes, untouched.

        Raises:
            RejectedSample: there is only a mask.
        """
        if ref.location.startswith(f"{_MASKS}/"):
            raise RejectedSample(f"the mask has no image of its name under {_IMAGES}/")
        return (self.root / ref.location).read_bytes()

    def files(self, ref: SampleRef) -> tuple[str, ...]:
        """The image and its mask, or what there is of them."""
        if ref.location.startswith(f"{_MASKS}/"):
            return (f"{self.root}/{ref.location}",)
        return (f"{self.root}/{ref.location}", f"{self._mask(ref)}")

    def annotation(self, ref: SampleRef) -> bytes:
        """The mask file's bytes, whose values were checked.

        Raises:
            RejectedSample: there is no mask, it can't be decoded, or it has values that are no class.
        """
        mask = self._mask(ref)
        try:
            content = mask.read_bytes()
        except FileNotFoundError:
            raise RejectedSample(f"the image has no mask {mask.relative_to(self.root)}") from None
        try:
            check_mask(content, len(self._classes))
        except RejectedSample as error:
            raise RejectedSample(f"{mask.relative_to(self.root)}: {error}") from None
        return content

    def _mask(self, ref: SampleRef) -> Path:
        """The mask's file, of an image; where there is none, the one that it should have."""
        usual = (self.root / _MASKS / PurePosixPath(ref.location).relative_to(_IMAGES)).with_suffix(".png")
        others = (usual.with_suffix(suffix) for suffix in (".PNG", ".Png"))
        return usual if usual.exists() else next((path for path in others if path.exists()), usual)

    def _table(self, given: Path | None) -> Path:
        if given is not None:
            return self.root / given.expanduser()
        found = sorted(self.root.glob("objectInfo*.txt"))
        if len(found) != 1:
            raise DataPrepError(
                f"source.class_names: {self.root} holds {len(found)} files objectInfo*.txt: name the table of "
                "classes (objectInfo150.txt is part of ADEChallengeData2016.zip)"
            )
        return found[0]

    def _refs(self, split: str, folder: str) -> list[SampleRef]:
        images = self._files(Path(_IMAGES) / folder, IMAGE_SUFFIXES)
        if not images:
            raise DataPrepError(f"source.splits.{split}: {self.root / _IMAGES / folder} has no images")
        stems = {name.with_suffix("") for name in images}
        if len(stems) < len(images):
            raise DataPrepError(
                f"{self.root / _IMAGES / folder} has images that differ in their suffix only, so that they would "
                "share a mask: rename them"
            )
        masks = [
            name for name in self._files(Path(_MASKS) / folder, {".png"}) if name.with_suffix("") not in stems
        ]
        names = [*images, *masks]
        keys = file_keys([str(name) for name in names])
        places = [Path(_IMAGES)] * len(images) + [Path(_MASKS)] * len(masks)
        return sorted(
            SampleRef(key, -1, str(place / folder / name))
            for key, place, name in zip(keys, places, names, strict=True)
        )

    def _files(self, folder: Path, suffixes: set[str]) -> list[Path]:
        """Files below a folder, relative to it; hidden ones are passed over."""
        start = self.root / folder
        expect_inside(start, self._real_root)
        found = []
        for path in sorted(start.rglob("*")):
            name = path.relative_to(start)
            if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in name.parts):
                continue
            if path.is_symlink():
                expect_inside(path, self._real_root)
            if not path.is_file():
                raise DataPrepError(f"{path} is not a file, or a broken link: remove it")
            found.append(name)
        return found


def read_classes(table: Path) -> list[str]:
    """Class names by label from an `objectInfo*.txt`: the first synonym of each.

    Raises:
        DataPrepError: it can't be read, or its lines are not numbered 1, 2, ...
    """
    header, *lines = read_text(table, "source.class_names").split("\n")
    rows = [line.split("\t") for line in lines if line.strip()]
    numbered = [row[0].strip() for row in rows] == [str(i + 1) for i in range(len(rows))]
    if not header.lower().startswith("idx") or not rows or len(rows) > _MAX_CLASSES or not numbered:
        raise DataPrepError(
            f"source.class_names: {table} must have a line Idx ... Name and then one line a class, separated by "
            f"tabs and numbered from 1 to at most {_MAX_CLASSES}"
        )
    names = {row[0].strip(): re.sub(r"\s*;\s*", ", ", row[-1].strip()) for row in rows}
    return readable_classes(list(names), names)
