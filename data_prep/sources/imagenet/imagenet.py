"""ImageNet-1k (Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015), in three layouts.

The same images give the same keys, labels and class names, so the same dataset digest, in each of them: a key is
the file's stem, labels follow the sorted wnids, and names come from one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from data_prep.config import ImageNetSource
from data_prep.console import some_of
from data_prep.errors import DataPrepError
from data_prep.sources.parsing.source_folder import readable_classes, sample_key
from data_prep.sources.source import Listing, SampleRef

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"


class ImageNetFile(NamedTuple):
    """An image: its file name, its class, and where it lies."""

    name: str
    wnid: str
    location: str


class Layout(Protocol):
    """One way in which ImageNet is shipped."""

    def files(self) -> tuple[list[ImageNetFile], list[ImageNetFile]]:
        """All train and all validation images."""
        ...

    def synsets(self) -> Mapping[str, str]:
        """All classes the publisher lists: wnid → names; empty where no list is at hand."""
        ...

    def read(self, location: str) -> bytes:
        """An image's bytes.

        Raises:
            OSError: it can't be read.
            RejectedSample: it can't be used.
        """
        ...


def open_source(config: ImageNetSource) -> ImageNet:
    """ImageNet in the layout that lies at `path`.

    Raises:
        DataPrepError: none of the three does.
    """
    from data_prep.sources.imagenet.folders import ClassFolders, KaggleFolders
    from data_prep.sources.imagenet.tars import PublishedTars

    path = config.path.expanduser()
    layout = _detect(path) if config.layout == "auto" else config.layout
    make: Mapping[str, Callable[[], Layout]] = {
        "tars": lambda: PublishedTars(path, check_md5=config.check_md5),
        "kaggle": lambda: KaggleFolders(path, follow_links=config.follow_links),
        "folders": lambda: ClassFolders(path, follow_links=config.follow_links),
    }
    return ImageNet(path, make[layout]())


class ImageNet:
    """ImageNet in any layout; `read` gives the files' own bytes."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout

    def listing(self) -> Listing:
        """Train and validation images; 1.3 million samples take about 0.4 GB of memory."""
        train, val = self._layout.files()
        wnids = sorted({file.wnid for file in train})
        self._expect_all_classes(wnids, self._layout.synsets())
        if stray := sorted({file.wnid for file in val} - set(wnids)):
            raise DataPrepError(
                f"{self._path}: validation images are of {len(stray)} classes without train images: {some_of(stray, 3)}"
            )
        for split, files in (("train", train), ("val", val)):
            if not files:
                raise DataPrepError(f"{self._path}: split {split!r} has no images")
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        names = dict(self._layout.synsets()) | _wordnet_names(wnids)
        return Listing(
            readable_classes(wnids, names), {"train": _refs(train, labels), "val": _refs(val, labels)}
        )

    def read(self, ref: SampleRef) -> bytes:
        """The file's bytes, untouched."""
        return self._layout.read(ref.location)

    def files(self, ref: SampleRef) -> tuple[str]:
        """The sample's file, or the tar that holds it."""
        return (f"{self._path}/{ref.location.split(':')[0]}",)

    def _expect_all_classes(self, wnids: list[str], published: Mapping[str, str]) -> None:
        """A class that is missing would shift the labels of all that follow."""
        if published and (absent := sorted(set(published) - set(wnids))):
            raise DataPrepError(
                f"{self._path}: {len(absent)} of {len(published)} published classes have no train images: "
                f"{some_of(absent, 3)}; complete them, or use source.kind: image_folder for a part of ImageNet"
            )
        if published and (stray := sorted(set(wnids) - set(published))):
            raise DataPrepError(
                f"{self._path}: {len(stray)} train classes are not among the {len(published)} published ones: "
                f"{some_of(stray, 3)}"
            )


def missing_tars(path: Path, absent: Iterable[str]) -> DataPrepError:
    """Returns the error that says which files to put where; ImageNet can't be fetched without an account."""
    sizes = {TRAIN_TAR: "148 GB", VAL_TAR: "6.7 GB", f"{DEVKIT}.tar.gz": "2.6 MB"}
    wanted = ", ".join(f"{name} ({sizes[name]})" for name in absent)
    return DataPrepError(
        f"source.path: {path} lacks {wanted}: put that there from {_HOME}; nothing needs to be unpacked"
    )


def _detect(path: Path) -> str:
    if not path.is_dir():
        raise DataPrepError(f"source.path: {path} is not a folder: {_LAYOUTS}")
    if (path / TRAIN_TAR).is_file() or (path / VAL_TAR).is_file():
        return "tars"
    if any((path / folder).is_dir() for folder in ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")):
        return "kaggle"
    if (path / "train").is_dir():
        return "folders"
    raise DataPrepError(f"source.path: no ImageNet at {path}: {_LAYOUTS}")


_HOME = "https://image-net.org/download-images (a free account for research is needed, so it can't be fetched here)"
_LAYOUTS = (
    f"put there {TRAIN_TAR} (148 GB), {VAL_TAR} (6.7 GB) and {DEVKIT}.tar.gz (2.6 MB) from {_HOME}; or Kaggle's "
    "imagenet-object-localization-challenge.zip, unpacked (ILSVRC/, LOC_val_solution.csv, LOC_synset_mapping.txt); "
    "or folders of classes, train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
)


def _refs(files: list[ImageNetFile], labels: Mapping[str, int]) -> list[SampleRef]:
    return sorted(
        SampleRef(
            sample_key(file.name.rpartition("/")[2].rpartition(".")[0]), labels[file.wnid], file.location
        )
        for file in files
    )


def _wordnet_names(wnids: list[str]) -> dict[str, str]:
    """WordNet's synonyms, from timm's table of 21,844 synsets."""
    from timm.data import ImageNetInfo

    info, names = ImageNetInfo(), {}
    for wnid in wnids:
        try:
            names[wnid] = info.label_name_to_description(wnid)
        except KeyError:
            continue
    return names
