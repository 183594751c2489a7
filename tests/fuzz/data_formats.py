"""Formats that preparing and reading datasets meets: what publishers and users give us, and what we write."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from annotated import rectangles, stripes
from coco_files import made_up_document, make_coco
from fuzzing import Facts, Format
from prep_helpers import image_bytes, make_folder, smooth_image
from published_minis import (
    MiniImageNet,
    cifar10_files,
    cifar100_files,
    flowers102_files,
    mat_bytes,
    stl10_files,
    write_files,
    write_tar,
)
from scipy.io import savemat

from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.errors import DataError
from data_prep.annotations.annotations import detection_json, parse_detection
from data_prep.config import (
    Cifar10Source,
    Cifar100Source,
    CocoSource,
    Flowers102Source,
    ImageFolderSource,
    ImageNetSource,
    OutputConfig,
    PrepareConfig,
    Stl10Source,
    WebDatasetSource,
)
from data_prep.dataset.manifest import load_manifest
from data_prep.errors import RejectedSample
from data_prep.images.masks import read_mask
from data_prep.prepare import prepare
from data_prep.sources.parsing.mat_file import read_mat, read_numbers
from data_prep.verify import verify

# --- sources -------------------------------------------------------------------------------------------------


def _prepared(source: Callable[[Path], Any]) -> Callable[[Path], Facts]:
    """Reading a source is preparing it, with as many rejected samples as there may be."""

    def read(folder: Path) -> Facts:
        with tempfile.TemporaryDirectory() as scratch:
            output = OutputConfig(path=Path(scratch, "out"), formats=("webdataset",))
            config = PrepareConfig(
                source=source(folder), output=output, max_rejected=1.0, max_unusable_objects=1.0
            )
            return frozenset([prepare(config, progress=lambda _line: None).digest])

    return read


def _make_tars(folder: Path) -> None:
    for split, count in (("train", 5), ("val", 2)):
        files = {}
        for number in range(count):
            name = f"{'long/' * 30 if number == 1 else ''}{number:04}"
            files[f"{name}.jpg"] = image_bytes(smooth_image(number))
            files[f"{name}.json"] = b'{"label": %d, "caption": "\xc3\xa4"}' % (number % 2)
        write_tar(folder / f"{split}.tar", files, kind=2 if split == "train" else 1)  # pax, gnu


def _make_flowers(folder: Path) -> None:
    write_files(folder, flowers102_files())


def _make_mats(folder: Path) -> None:
    """Plain and compressed numbers, and the devkit's structs."""
    numbers = {"labels": [3, 1, 2], "other": np.arange(7.0)}
    (folder / "plain.mat").write_bytes(mat_bytes(**numbers))
    buffer = io.BytesIO()
    savemat(buffer, numbers, do_compression=True)
    (folder / "packed.mat").write_bytes(buffer.getvalue())
    rows = np.array(
        [(1, "n01", "a"), (2, "n02", "b")], dtype=[(name, object) for name in ("id", "wnid", "words")]
    )
    savemat(folder / "structs.mat", {"synsets": rows[:, None]})


def _read_mats(folder: Path) -> Facts:
    found = {
        str(read_numbers((folder / f"{name}.mat").read_bytes(), name, "labels"))
        for name in ("plain", "packed")
    }
    return frozenset(found | {str(read_mat((folder / "structs.mat").read_bytes(), "structs", "synsets"))})


def _make_stl10(folder: Path) -> None:
    write_files(folder, stl10_files(2, 2)[0])


def _make_images(folder: Path) -> None:
    make_folder(folder, train=4, val=1, classes=1)


SOURCES = [
    Format(
        "tar (WebDataset source)",
        _make_tars,
        "*.tar",
        _prepared(lambda folder: WebDatasetSource(path=folder, label_field="json:label")),
    ),
    Format(
        "COCO document",
        lambda folder: void(make_coco(folder, 3, 1)),
        "annotations/*.json",
        _prepared(lambda folder: CocoSource(path=folder)),
        text="json",
        share=1.5,
    ),
    Format(
        "pickle (CIFAR-10)",
        lambda folder: void(write_files(folder, cifar10_files(1))),
        "*",
        _prepared(lambda folder: Cifar10Source(path=folder, check_md5=False)),
    ),
    Format(
        "pickle (CIFAR-100)",
        lambda folder: void(write_files(folder, cifar100_files(2, 1))),
        "*",
        _prepared(lambda folder: Cifar100Source(path=folder, check_md5=False)),
        share=0.5,
    ),
    Format(
        "archive and labels (Flowers-102)",
        _make_flowers,
        "*.*",
        _prepared(lambda folder: Flowers102Source(path=folder, check_md5=False)),
        share=0.5,
    ),
    Format("MATLAB files", _make_mats, "*.mat", _read_mats),
    Format(
        "binary files (STL-10)",
        _make_stl10,
        "*",
        _prepared(lambda folder: Stl10Source(path=folder, check_md5=False)),
        share=0.25,
    ),
    Format(
        "tars of tars and devkit (ImageNet)",
        lambda folder: void(MiniImageNet().tars(folder / "tars")),
        "tars/*",
        _prepared(lambda folder: ImageNetSource(path=folder / "tars")),
        share=0.5,
    ),
    Format(
        "images (folder)", _make_images, "*/*/*", _prepared(lambda folder: ImageFolderSource(path=folder))
    ),
]


# --- what preparation writes ---------------------------------------------------------------------------------


def _make_dataset(folder: Path) -> None:
    """Boxes and masks in both formats."""
    shutil.copytree(rectangles(), folder / "boxes")
    shutil.copytree(stripes(), folder / "masks")


def _read_dataset(folder: Path) -> Facts:
    """All that readers get of every sample, and `data verify` on top; a damaged sample costs that sample."""
    found: set[Any] = set()
    for name in ("boxes", "masks"):
        manifest = open_manifest(str(folder / name))
        found.add((name, manifest.digest, *manifest.classes, *manifest.mean))
        for format in ("webdataset", "ffcv"):
            split = ShardedSplit(folder / name, manifest, "train", format)
            for sample in range(len(split)):
                found |= _sample(name, split, sample, manifest.class_ids)
        verify(folder / name)
    return frozenset(found)


def _sample(name: str, split: ShardedSplit, sample: int, class_ids: list[int] | None) -> set[Any]:
    try:
        payload, annotation, key = split.payload(sample), split.annotation(sample), split.key(sample)
        pixels = payload.pixels().tobytes()
    except DataError:
        return set()
    if name == "boxes":
        parse_detection(annotation, class_ids)
    else:
        read_mask(annotation)
    return {(name, split.format, sample, key, payload.label, _digest(pixels), _digest(annotation))}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_manifest(folder: Path) -> Facts:
    return frozenset(load_manifest(path.parent).model_dump_json() for path in folder.glob("*/manifest.json"))


def _make_annotation(folder: Path) -> None:
    document = made_up_document("train", 6)
    for image in document["images"]:
        objects = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        if objects:
            (folder / f"{image['id']}.json").write_bytes(detection_json(image, objects))


def _read_annotation(folder: Path) -> Facts:
    found = []
    for path in sorted(folder.glob("*.json")):
        one = parse_detection(path.read_bytes())
        masks = [one.mask(place) for place in range(len(one.objects))]
        found.append((path.name, str(one.objects), one.boxes.tobytes(), str(one.oddities), len(masks)))
    return frozenset(found)


OURS = [
    Format("shard (.tar)", _make_dataset, "*/*/*.tar", _read_dataset, checked=True),
    Format("shard (.beton)", _make_dataset, "*/*/*.beton", _read_dataset, checked=True),
    Format("sample index", _make_dataset, "*/*/*.arrow", _read_dataset, checked=True, share=1.5),
    Format("dataset manifest", _make_dataset, "*/manifest.json", _read_manifest, text="json", checked=True),
    Format(
        "stored annotation",
        _make_annotation,
        "*.json",
        _read_annotation,
        text="json",
        errors=(RejectedSample,),
    ),
]


def void(_: object) -> None:
    """Drop a value that `make` doesn't give."""


DATA_FORMATS = [*SOURCES, *OURS]
