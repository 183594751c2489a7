"""Boxes and masks in both formats: stock readers get them back, one digest covers them, changes are noticed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import make_coco
from PIL import Image
from prep_helpers import image_bytes, make_scenes, snapshot

from data_prep.config import Ade20kSource, CocoSource, OutputConfig, PrepareConfig, ResizeConfig
from data_prep.dataset.checksums import payload_checksum
from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare
from data_prep.verify import verify


def run(source: CocoSource | Ade20kSource, output: Path, **settings: Any) -> DatasetManifest:
    config = PrepareConfig(
        source=source, output=OutputConfig(path=output, **({"samples_per_shard": 3} | settings))
    )
    return prepare(config, progress=lambda line: None)


@pytest.fixture(scope="module", params=["detection", "segmentation"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    run(_source(request.param, folder / "source"), folder / "out")
    return folder / "out"


def _source(task: str, folder: Path) -> CocoSource | Ade20kSource:
    if task == "detection":
        return CocoSource(path=folder if folder.exists() else make_coco(folder, 5, 2))
    return Ade20kSource(path=folder if folder.exists() else make_scenes(folder))


def stored(output: Path, format_name: str, split: str = "train") -> dict[str, bytes]:
    """Annotations by key, read as the platform does."""
    manifest = DatasetManifest.model_validate_json((output / "manifest.json").read_bytes())
    annotations = {}
    for shard in manifest.splits[split].formats[format_name]:
        content = (output / shard.file).read_bytes()
        index = read_index(output / shard.index)
        for row in map(index.row, range(len(index))):
            start = row.annotation_offset
            annotations[row.key] = content[start : start + row.annotation_length]
            assert row.annotation_checksum == payload_checksum(annotations[row.key])
            assert row.label == -1
    return annotations


def test_both_formats_hold_the_same_annotations(prepared: Path) -> None:
    report = verify(prepared)
    assert report.ok, report.problems
    tar, beton = stored(prepared, "webdataset"), stored(prepared, "ffcv")
    assert tar == beton
    assert len(tar) == 5
    source = prepared.parent / "source"
    if report.manifest and report.manifest.task == "segmentation":
        assert tar == {
            path.stem: path.read_bytes() for path in (source / "annotations" / "training").iterdir()
        }


def test_stock_webdataset_reads_them(prepared: Path) -> None:
    import webdataset

    expected = stored(prepared, "webdataset")
    urls = [str(path) for path in sorted((prepared / "webdataset").glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(expected)
    for sample in samples:
        found = sample.get("json", sample.get("seg.png"))
        assert found == expected[sample["__key__"]]
        assert "cls" not in sample
        assert Image.open(io.BytesIO(sample["jpg"])).format == "JPEG"


@pytest.mark.ffcv
@pytest.mark.parametrize(
    "prepared", ["detection", pytest.param("segmentation", marks=pytest.mark.slow)], indirect=True
)
def test_stock_ffcv_reads_them(prepared: Path) -> None:
    """Boxes from the mapped file, masks page by page: every loader takes seconds to compile."""
    pytest.importorskip("ffcv", reason="ffcv is not installed")
    from ffcv.fields import JSONField
    from ffcv.fields.bytes import BytesDecoder
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader

    expected = stored(prepared, "ffcv")
    (first, *_) = sorted((prepared / "ffcv").glob("train-*.beton"))
    images: dict[str, Any] = {"image": [SimpleRGBImageDecoder()]}
    if len({tuple(size) for size in _sizes(first)}) > 1:
        images = {"image": None}  # its simple decoder wants images of one size
    loader = Loader(
        str(first),
        batch_size=3,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=prepared.parent.name.startswith("detection"),
        drop_last=False,
        pipelines=images | {"label": [IntDecoder()], "annotation": [BytesDecoder()]},
    )
    (batch,) = list(loader)
    annotations, labels = np.array(batch[-1]), np.array(batch[-2])
    assert (labels == -1).all()
    sizes = Reader(str(first)).metadata["f2"]["size"]
    for found, size, content in zip(annotations, sizes, list(expected.values())[:3], strict=True):
        if content.startswith(b"{"):
            assert JSONField.unpack(found) == json.loads(content)
        else:
            assert found[:size].tobytes() == content


def _sizes(beton: Path) -> list[tuple[int, int]]:
    from data_prep.dataset.manifest import load_manifest
    from data_prep.writers.ffcv_writer import read_beton

    task = load_manifest(beton.parents[1]).task
    return [(int(row["height"]), int(row["width"])) for row in read_beton(beton, task)]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_the_digest_is_one_for_all_forms_and_covers_annotations(tmp_path: Path, task: str) -> None:
    source = _source(task, tmp_path / "source")
    digest = run(source, tmp_path / "both").digest
    assert run(source, tmp_path / "tars", formats=("webdataset",)).digest == digest
    assert run(source, tmp_path / "betons", formats=("ffcv",), samples_per_shard=100).digest == digest
    if task == "detection":
        path = tmp_path / "source" / "annotations" / "instances_train2017.json"
        document = json.loads(path.read_text())
        document["annotations"][0]["bbox"][2] += 1
        path.write_text(json.dumps(document))
    else:
        mask = tmp_path / "source" / "annotations" / "training" / "scene_0.png"
        pixels = np.array(Image.open(mask))
        pixels[0, 0] = (pixels[0, 0] + 1) % 4
        mask.write_bytes(image_bytes(Image.fromarray(pixels), "PNG"))
    assert run(source, tmp_path / "changed").digest != digest


def test_boxes_are_not_resized(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match=r"output\.resize: the published boxes"):
        run(_source("detection", tmp_path / "source"), tmp_path / "out", resize=ResizeConfig(short_side=8))
    assert not (tmp_path / "out").exists()


def test_masks_shrink_with_their_images_without_new_values(tmp_path: Path) -> None:
    manifest = run(
        _source("segmentation", tmp_path / "source"), tmp_path / "out", resize=ResizeConfig(short_side=8)
    )
    masks = stored(tmp_path / "out", "webdataset")
    assert masks == stored(tmp_path / "out", "ffcv")
    for shard in manifest.splits["train"].formats["ffcv"]:
        index = read_index(tmp_path / "out" / shard.index)
        for row in map(index.row, range(len(index))):
            mask = np.array(Image.open(io.BytesIO(masks[row.key])))
            assert mask.shape == (row.height, row.width)
            assert min(mask.shape) == 8
            assert mask.max() <= 3
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_changed_annotation_is_named(tmp_path: Path, task: str) -> None:
    run(_source(task, tmp_path / "source"), tmp_path / "out")
    before = snapshot(tmp_path / "out")
    for file in ("webdataset/train-000000.tar", "ffcv/train-000000.beton"):
        path = tmp_path / "out" / file
        row = read_index(path.with_suffix(".index.arrow")).row(1)
        content = bytearray(path.read_bytes())
        content[row.annotation_offset + row.annotation_length - 1] ^= 16
        path.write_bytes(content)
        problems = verify(tmp_path / "out").problems
        assert f"{file}: the annotation of {row.key}" in problems[1]
        content[row.annotation_offset + row.annotation_length - 1] ^= 16
        path.write_bytes(content)
    assert snapshot(tmp_path / "out") == before
