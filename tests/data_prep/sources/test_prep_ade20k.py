"""ADE20K's layout through both formats and back: masks as published; what is missing or odd is rejected."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prep_helpers import image_bytes, rejected_lines, smooth_image

from data_prep.config import Ade20kSource, OutputConfig, PrepareConfig
from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.images.masks import read_mask
from data_prep.prepare import prepare
from data_prep.sources import open_source
from data_prep.sources.ade20k import read_classes
from data_prep.verify import verify

TABLE = (
    "Idx\tRatio\tTrain\tVal\tName\n1\t0.5\t9\t9\twall\n2\t0.2\t9\t9\tbuilding, edifice\n3\t0.1\t9\t9\tsky\n"
)
SIZE = (40, 30)


def mask_bytes(seed: int, size: tuple[int, int] = SIZE, high: int = 4) -> bytes:
    values = np.random.default_rng(seed).integers(0, high, (size[1], size[0]), dtype=np.uint8)
    return image_bytes(Image.fromarray(values), "PNG")


def make_ade(root: Path, train: int = 5, val: int = 3) -> Path:
    for folder, count in (("training", train), ("validation", val)):
        for i in range(count):
            name = f"scene.{i}" if i else "größe 0"
            kind, suffix = (("JPEG", "jpg"), ("PNG", "png"))[i % 2]
            for path, content in (
                (root / "images" / folder / f"{name}.{suffix}", image_bytes(smooth_image(i, SIZE), kind)),
                (root / "annotations" / folder / f"{name}.png", mask_bytes(i)),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    (root / "objectInfo150.txt").write_text(TABLE)
    return root


def prepare_ade(source: Path, output: Path, **settings: Any) -> DatasetManifest:
    resize = settings.pop("resize", None)
    config = PrepareConfig(
        source=Ade20kSource(path=source),
        output=OutputConfig(path=output, samples_per_shard=3, resize=resize),
        **settings,
    )
    return prepare(config, progress=lambda line: None)


def stored_masks(folder: Path, format_name: str) -> dict[str, tuple[bytes, tuple[int, int]]]:
    """`<split>/<key>` → the mask's file and the image's height and width."""
    found = {}
    for split, info in load_manifest(folder).splits.items():
        for shard in info.formats[format_name]:
            content, index = (folder / shard.file).read_bytes(), read_index(folder / shard.index)
            for row in map(index.row, range(len(index))):
                mask = content[row.annotation_offset : row.annotation_offset + row.annotation_length]
                found[f"{split}/{row.key}"] = (mask, (row.height, row.width))
    return found


def published_masks(source: Path) -> dict[str, bytes]:
    listing = open_source(Ade20kSource(path=source)).listing()
    return {
        f"{split}/{ref.key}": (source / ref.location.replace("images/", "annotations/").rpartition(".")[0])
        .with_name(Path(ref.location).stem + ".png")
        .read_bytes()
        for split, refs in listing.splits.items()
        for ref in refs
    }


def assert_round_trip(source: Path, output: Path) -> DatasetManifest:
    manifest = prepare_ade(source, output)
    assert manifest.task == "segmentation"
    assert manifest.class_ids == list(range(1, manifest.num_classes + 1))
    report = verify(output)
    assert report.ok, report.problems
    expected = published_masks(source)
    for format_name in ("webdataset", "ffcv"):
        found = stored_masks(output, format_name)
        assert {key: mask for key, (mask, _) in found.items()} == expected
        for mask, size in found.values():
            values = read_mask(mask)
            assert values.shape == size and values.max() <= manifest.num_classes
    return manifest


def test_masks_come_back_from_both_formats(tmp_path: Path) -> None:
    manifest = assert_round_trip(make_ade(tmp_path / "ade"), tmp_path / "out")
    assert manifest.classes == ["wall", "building", "sky"]
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 5, "val": 3}


@pytest.mark.real_data
@pytest.mark.parametrize(("pack", "classes"), [("ADEChallengeData2016", 150), ("CamVidADE", 11)])
def test_real_masks_come_back_from_both_formats(tmp_path: Path, pack: str, classes: int) -> None:
    folder = os.environ.get("CONVMLP_TEST_DATA")
    if not folder or not (Path(folder) / pack).is_dir():
        pytest.skip(f"CONVMLP_TEST_DATA does not name a folder that holds {pack}/")
    manifest = assert_round_trip(Path(folder) / pack, tmp_path / "out")
    assert manifest.num_classes == classes
    assert manifest.preprocessing["num_rejected"] == 0


def test_masks_shrink_with_their_images(tmp_path: Path) -> None:
    manifest = prepare_ade(make_ade(tmp_path / "ade"), tmp_path / "out", resize={"short_side": 15})
    for format_name in manifest.formats:
        for mask, size in stored_masks(tmp_path / "out", format_name).values():
            assert size == (15, 20)
            assert read_mask(mask).shape == size
            assert set(read_mask(mask).ravel()) <= {0, 1, 2, 3}


def test_what_is_missing_or_odd_is_rejected_with_its_reason(tmp_path: Path) -> None:
    root = make_ade(tmp_path / "ade", train=12)
    images, masks = root / "images" / "training", root / "annotations" / "training"
    (masks / "scene.1.png").unlink()
    (images / "scene.2.jpg").unlink()
    (masks / "scene.3.png").write_bytes(mask_bytes(0, (30, 40)))
    (masks / "scene.4.png").write_bytes(mask_bytes(0, high=5))
    (masks / "scene.5.png").write_bytes(image_bytes(smooth_image(0, SIZE), "PNG"))
    (masks / "scene.6.png").write_bytes(b"")
    (masks / "scene.7.png").write_bytes(mask_bytes(1)[:-30])
    buffer = io.BytesIO()
    Image.fromarray(np.ones(SIZE[::-1], np.uint16)).save(buffer, "PNG")
    (masks / "scene.8.png").write_bytes(buffer.getvalue())
    (images / "scene.9.png").write_bytes(b"no image")
    with pytest.raises(DataPrepError, match=r"max_rejected"):
        prepare_ade(root, tmp_path / "out", max_rejected=0.2)
    manifest = prepare_ade(root, tmp_path / "out", max_rejected=0.8)
    assert manifest.splits["train"].num_samples == 3
    lines = rejected_lines(tmp_path / "out")
    expected = {
        "images/training/scene.1.png": "the image has no mask annotations/training/scene.1.png",
        "annotations/training/scene.2.png": "the mask has no image of its name under images/",
        "images/training/scene.3.png": "the annotation is of 30 x 40 pixels, the image has 40 x 30",
        "images/training/scene.4.jpg": "annotations/training/scene.4.png: the mask has value 4 at row",
        "images/training/scene.5.png": "annotations/training/scene.5.png: the mask's mode is RGB",
        "images/training/scene.6.jpg": "annotations/training/scene.6.png: the mask is not an intact PNG file",
        "images/training/scene.7.png": "annotations/training/scene.7.png: the mask: damaged PNG data",
        "images/training/scene.8.jpg": "annotations/training/scene.8.png: the mask's mode is I;16",
        "images/training/scene.9.png": "not a JPEG, PNG, BMP or WebP image",
    }
    assert sorted(line["location"] for line in lines) == sorted(expected)
    for line in lines:
        assert line["reason"].startswith(expected[line["location"]]), line


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "must have a line Idx"),
        ("wall\nbuilding\n", "must have a line Idx"),
        ("Idx\tName\n", "must have a line Idx"),
        ("Idx\tName\n1\twall\n3\tsky\n", "numbered from 1"),
        ("Idx\tName\n" + "".join(f"{i}\tc{i}\n" for i in range(1, 257)), "at most 255"),
    ],
)
def test_tables_that_say_something_else(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "objectInfo.txt").write_text(table)
    with pytest.raises(DataPrepError, match=message):
        read_classes(tmp_path / "objectInfo.txt")


def test_class_names_are_the_first_synonyms_and_unique(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Idx\tName\n1\tcar; auto\n2\tscreen, display\n3\tscreen\n")
    assert read_classes(tmp_path / "t.txt") == ["car", "screen (2)", "screen (3)"]


def test_folders_that_are_laid_out_otherwise(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match=r"holds 0 files objectInfo\*.txt"):
        open_source(Ade20kSource(path=tmp_path))
    with pytest.raises(DataPrepError, match=r"nowhere is not a folder"):
        open_source(Ade20kSource(path=tmp_path / "nowhere"))
    (tmp_path / "ADEChallengeData2016").mkdir()
    with pytest.raises(DataPrepError, match=r"name the folder .*ADEChallengeData2016 itself"):
        open_source(Ade20kSource(path=tmp_path))
    root = make_ade(tmp_path / "ade")
    with pytest.raises(DataPrepError, match=r"source.splits.test: .*images/testing has no images"):
        open_source(Ade20kSource(path=root, splits={"test": "testing"})).listing()
    with pytest.raises(DataPrepError, match="leads out of source"):
        open_source(Ade20kSource(path=root, splits={"test": "../../.."})).listing()
    (root / "images" / "training" / "scene.1.jpg").write_bytes(b"")
    with pytest.raises(DataPrepError, match="differ in their suffix only"):
        open_source(Ade20kSource(path=root)).listing()
