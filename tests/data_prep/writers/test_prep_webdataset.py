"""Tars are plain: webdataset and tarfile read every sample, image and label."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from prep_helpers import image_bytes, make_folder, prepare_folder, smooth_image

from data_prep.dataset.index import read_index

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_stock_webdataset_reads_images_and_labels(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    (source / "train" / "class_1" / "dots.and more.jpg").write_bytes(image_bytes(smooth_image(50)))
    manifest = prepare_folder(source, tmp_path / "out")
    shards = manifest.splits["train"].formats["webdataset"]
    urls = [str(tmp_path / "out" / shard.file) for shard in shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    indexes = [read_index(tmp_path / "out" / shard.index) for shard in shards]
    rows = [index.row(i) for index in indexes for i in range(len(index))]
    assert [sample["__key__"] for sample in samples] == [row.key for row in rows]
    assert [sample["cls"] for sample in samples] == [row.label for row in rows]
    files = {f"{file.parent.name}/{file.stem}": file for file in (source / "train").rglob("*.*")}
    for sample in samples:
        (image,) = (sample[suffix] for suffix in ("jpg", "png") if suffix in sample)
        key = sample["__key__"].replace("%2E", ".").replace("%20", " ")
        original = Image.open(files[key]).convert("RGB")
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(original))


def test_tar_members_depend_on_content_only(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    long_name = "x" * 150
    (source / "train" / "class_0" / f"{long_name}.jpg").write_bytes(image_bytes(smooth_image(1)))
    manifest = prepare_folder(source, tmp_path / "out", samples_per_shard=100)
    (shard,) = manifest.splits["train"].formats["webdataset"]
    assert shard.bytes % tarfile.RECORDSIZE == 0
    with tarfile.open(tmp_path / "out" / shard.file) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert f"class_0/{long_name}.jpg" in names
    assert len(names) == 24
    for first, second in zip(names[::2], names[1::2], strict=True):
        assert first.rpartition(".")[0] == second.rpartition(".")[0]
        assert first < second
    for member in members:
        owner = (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
        assert owner == (0, 0, 0, "", "", 0o644)
