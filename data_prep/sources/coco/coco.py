"""COCO detection: a folder of images a split, and one JSON document with all of its annotations.

The document decides which images a split has: files that it doesn't list are passed over. It is scanned once, for
the listing; a sample's location then names the byte ranges of its image's and its annotations' entries, so that
workers read a few kilobytes and neither parse the 448 MB of train2017 nor need a copy of it.

Measured on a document of train2017's dimensions (118,287 images, 860,001 annotations, 487 MB): the scan takes 11 s
of CPU time and 0.2 GB of memory beside the file's cached pages; json.load takes 20 s and 2.9 GB, which every worker
would need. A sample's annotation takes 80 µs.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from pathlib import Path, PurePosixPath

from data_prep.annotations.annotations import completed, detection_json, parse_detection
from data_prep.config import CocoSource
from data_prep.console import some_of
from data_prep.errors import DataPrepError
from data_prep.sources.coco.document import CocoDocument, map_document, read_document, read_part
from data_prep.sources.parsing.source_folder import expect_inside, file_keys, inside_of, unicode_twins
from data_prep.sources.source import Listing, SampleRef

_SHOWN = 3


def open_source(config: CocoSource) -> Coco:
    """The COCO folder of a configuration."""
    return Coco(config.path, dict(config.splits), follow_links=config.follow_links)


class Coco:
    """`<root>/<image folder>/<file_name>` with `<root>/annotations/instances_<image folder>.json`.

    Labels of boxes are positions among the category ids in ascending order; images without annotations stay.

    Args:
        root: the folder.
        splits: split name → image folder.
        follow_links: links may lead out of the root.
    """

    def __init__(self, root: Path, splits: dict[str, str], *, follow_links: bool = False) -> None:
        self.root = root.expanduser()
        if not self.root.is_dir():
            raise DataPrepError(f"source.path: {root} is not a folder")
        if not splits:
            raise DataPrepError("source.splits must name at least one split")
        self._splits = splits
        self._real_root = inside_of(self.root, follow_links=follow_links)
        self._mapped: dict[str, mmap.mmap] = {}

    def listing(self) -> Listing:
        """All images of the documents; those without a file are rejected when they are read."""
        documents = {split: read_document(self._document(split)) for split in self._splits}
        categories = _common_categories(documents)
        class_ids = sorted(categories)
        return Listing(
            classes=[categories[number] for number in class_ids],
            splits={split: self._refs(split, document) for split, document in documents.items()},
            task="detection",
            class_ids=class_ids,
            documents=tuple(self._document(split) for split in self._splits),
        )

    def read(self, ref: SampleRef) -> bytes:
        """The image file's bytes, untouched."""
        return (self.root / ref.location.rpartition("#")[0]).read_bytes()

    def files(self, ref: SampleRef) -> tuple[str]:
        """The image's file."""
        return (f"{self.root}/{ref.location.rpartition('#')[0]}",)

    def annotation(self, ref: SampleRef) -> bytes:
        """The image's annotations as `data_prep.annotations.annotations` stores them, checked against each other.

        Raises:
            RejectedSample: they contradict themselves.
            DataPrepError: the document was changed after the listing.
        """
        file, _, where = ref.location.rpartition("#")
        split, _, ranges = where.partition(":")
        path = self._document(split)
        if split not in self._mapped:
            self._mapped[split] = map_document(path)
        places = [place.split("+") for place in ranges.split(",")]
        image, *objects = (
            read_part(self._mapped[split], int(start), int(length), path) for start, length in places
        )
        if f"{self._splits[split]}/{image.get('file_name')}" != file or any(
            item.get("image_id") != image.get("id") for item in objects
        ):
            raise DataPrepError(f"{path} was changed while it was being prepared: start the job again")
        stored = detection_json(image, [completed(item) for item in objects])
        parse_detection(stored)
        return stored

    def _document(self, split: str) -> Path:
        return self.root / "annotations" / f"instances_{PurePosixPath(self._splits[split]).name}.json"

    def _refs(self, split: str, document: CocoDocument) -> list[SampleRef]:
        folder = self._splits[split]
        names = [image.file_name for image in document.images.values()]
        self._expect_files(folder, document)
        return sorted(
            SampleRef(key, -1, f"{folder}/{image.file_name}#{split}:{_join(image.ranges.tolist())}")
            for key, image in zip(file_keys(names), document.images.values(), strict=True)
        )

    def _expect_files(self, folder: str, document: CocoDocument) -> None:
        """No file twice or outside the root, and not all of them missing. Folders are listed once: 118,287 look-ups
        take minutes on a network file system."""
        uses = Counter(image.file_name for image in document.images.values())
        if twice := [name for name, count in uses.items() if count > 1]:
            raise DataPrepError(
                f"{document.path}: {len(twice)} files have two images: {some_of(twice, _SHOWN)}"
            )
        listed: dict[Path, dict[str, bool]] = {}
        missing, twins = [], ""
        for number, image in document.images.items():
            path = PurePosixPath(image.file_name)
            if path.is_absolute() or ".." in path.parts or "\0" in image.file_name:
                raise DataPrepError(
                    f"{document.path}: image {number}: file_name {image.file_name!r} leads out of {folder}/"
                )
            parent = self.root / folder / path.parent
            if parent not in listed:
                expect_inside(parent, self._real_root)
                listed[parent] = _files(parent)
            is_link = listed[parent].get(path.name)
            if is_link:
                expect_inside(parent / path.name, self._real_root)
            if is_link is None:
                missing.append(f"{image.file_name} (image {number})")
                twins = twins or unicode_twins([path.name], listed[parent])
        if len(missing) == len(document.images):  # some alone are rejected as they are read
            raise DataPrepError(
                f"{document.path} lists {len(missing):,} images, and none of them is in {self.root / folder}: "
                f"{some_of(missing, _SHOWN)}{twins}"
            )


def _common_categories(documents: dict[str, CocoDocument]) -> dict[int, str]:
    first, *others = documents.values()
    for other in others:
        if other.categories != first.categories:
            different = sorted(set(first.categories.items()) ^ set(other.categories.items()))
            raise DataPrepError(
                f"{first.path} and {other.path} have different categories: "
                f"{some_of([f'{number} {name}' for number, name in different], _SHOWN)}"
            )
    return first.categories


def _files(folder: Path) -> dict[str, bool]:
    """Names of the files in a folder: is it a link?"""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}


def _join(ranges: list[int]) -> str:
    return ",".join(f"{start}+{length}" for start, length in zip(ranges[::2], ranges[1::2], strict=True))
