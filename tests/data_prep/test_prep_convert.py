"""The prepare job: both formats, one digest, the right refusals, nothing half-finished."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prep_helpers import (
    folder_job,
    image_bytes,
    make_folder,
    prepare_folder,
    rejected_lines,
    smooth_image,
    snapshot,
)
from pydantic import ValidationError

from data_prep import prepare as convert
from data_prep.config import DigitsSource, OutputConfig, PrepareConfig, ResizeConfig
from data_prep.dataset.checksums import content_hash, payload_checksum
from data_prep.dataset.index import ENCODED, RAW_RGB, read_index
from data_prep.dataset.manifest import DatasetManifest, load_manifest
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare
from data_prep.verify import verify


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "source")


def payloads(output: Path, manifest: DatasetManifest, split: str, format_name: str) -> dict[str, Image.Image]:
    """Decoded RGB images by key, read by (offset, length) as the platform does."""
    images = {}
    for shard in manifest.splits[split].formats[format_name]:
        index = read_index(output / shard.index)
        content = (output / shard.file).read_bytes()
        for row in map(index.row, range(len(index))):
            payload = content[row.offset : row.offset + row.length]
            assert payload_checksum(payload) == row.checksum
            if row.encoding == ENCODED:
                images[row.key] = Image.open(io.BytesIO(payload)).convert("RGB")
            else:
                images[row.key] = Image.frombytes("RGB", (row.width, row.height), payload)
            assert images[row.key].size == (row.width, row.height)
    return images


def test_both_formats_hold_the_source_images(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    manifest = prepare_folder(source, output)
    assert manifest.classes == ["class_0", "class_1", "class_2"]
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 11, "val": 5}
    assert [s.num_samples for s in manifest.splits["train"].formats["ffcv"]] == [4, 4, 3]
    for split in ("train", "val"):
        tar = payloads(output, manifest, split, "webdataset")
        beton = payloads(output, manifest, split, "ffcv")
        assert list(tar) == list(beton)
        assert list(tar) != sorted(tar)
        for file in (source / split).rglob("*.*"):
            original = np.array(Image.open(file).convert("RGB"))
            key = str(file.relative_to(source / split).with_suffix(""))
            np.testing.assert_array_equal(np.array(tar[key]), original)
            np.testing.assert_array_equal(np.array(beton[key]), original)
    assert sorted(p.name for p in output.iterdir()) == [
        "ffcv",
        "manifest.json",
        "rejected.jsonl",
        "source.json",
        "webdataset",
    ]
    assert (output / "rejected.jsonl").read_bytes() == b""


def test_jpeg_bytes_pass_through_and_the_rest_becomes_raw_in_beton(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    manifest = prepare_folder(source, output, samples_per_shard=100)
    (shard,) = manifest.splits["train"].formats["ffcv"]
    index = read_index(output / shard.index)
    content = (output / shard.file).read_bytes()
    files = {str(f.relative_to(source / "train").with_suffix("")): f for f in (source / "train").rglob("*.*")}
    for row in map(index.row, range(len(index))):
        file = files[row.key]
        passes = Image.open(file).format == "JPEG" and Image.open(file).mode != "CMYK"
        assert row.encoding == (ENCODED if passes else RAW_RGB)
        assert row.source_hash == content_hash(file.read_bytes())
        if passes:
            assert content[row.offset : row.offset + row.length] == file.read_bytes()
        else:
            assert row.length == row.height * row.width * 3


def test_digest_ignores_format_and_shard_size_but_not_content(source: Path, tmp_path: Path) -> None:
    reference = prepare_folder(source, tmp_path / "a").digest
    assert prepare_folder(source, tmp_path / "b", formats=("webdataset",)).digest == reference
    assert prepare_folder(source, tmp_path / "c", formats=("ffcv",), samples_per_shard=3).digest == reference
    one = prepare_folder(source, tmp_path / "d", samples_per_shard=1000)
    assert one.digest == reference
    assert one.mean == load_manifest(tmp_path / "a").mean
    assert prepare_folder(source, tmp_path / "e", shuffle_seed=1).digest != reference
    changed = next((source / "train").rglob("*.png"))
    changed.write_bytes(image_bytes(smooth_image(999), "PNG"))
    assert prepare_folder(source, tmp_path / "f").digest != reference


def test_statistics_are_those_of_the_stored_train_pixels(source: Path, tmp_path: Path) -> None:
    manifest = prepare_folder(source, tmp_path / "out")
    images = payloads(tmp_path / "out", manifest, "train", "webdataset").values()
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(manifest.std, pixels.std(axis=0), atol=1e-6)
    few = prepare_folder(source, tmp_path / "few", statistics_images=2)
    assert few.mean != manifest.mean
    assert (
        few.mean == prepare_folder(source, tmp_path / "few1", statistics_images=2, samples_per_shard=1).mean
    )


def test_resize_shrinks_only_and_shares_the_bytes(tmp_path: Path) -> None:
    source = tmp_path / "source" / "train" / "a"
    source.mkdir(parents=True)
    (source / "big.png").write_bytes(image_bytes(smooth_image(0, (64, 40)), "PNG"))
    (source / "small.jpg").write_bytes(image_bytes(smooth_image(1, (30, 16))))
    manifest = prepare_folder(
        tmp_path / "source",
        tmp_path / "out",
        splits={"train": "train"},
        resize=ResizeConfig(short_side=20),
    )
    stored = {}
    for name, (shard,) in manifest.splits["train"].formats.items():
        index = read_index(tmp_path / "out" / shard.index)
        content = (tmp_path / "out" / shard.file).read_bytes()
        rows = [index.row(i) for i in range(2)]
        stored[name] = {row.key: content[row.offset : row.offset + row.length] for row in rows}
        assert {row.key: (row.width, row.height) for row in rows} == {"a/big": (32, 20), "a/small": (30, 16)}
    assert stored["ffcv"] == stored["webdataset"]
    assert stored["ffcv"]["a/small"] == (source / "small.jpg").read_bytes()
    assert verify(tmp_path / "out").ok


def test_digits(tmp_path: Path) -> None:
    config = PrepareConfig(source=DigitsSource(), output=OutputConfig(path=tmp_path / "digits"))
    lines: list[str] = []
    manifest = prepare(config, progress=lines.append)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 1438, "val": 359}
    assert manifest.classes == [str(i) for i in range(10)]
    (shard,) = manifest.splits["val"].formats["webdataset"]
    per_class = np.bincount(read_index(tmp_path / "digits" / shard.index).label)
    assert per_class.min() >= 34
    assert per_class.max() <= 37
    assert manifest.mean[0] == pytest.approx(0.305, abs=0.005)
    assert verify(tmp_path / "digits").ok
    assert any("1,797/1,797 images" in line for line in lines)
    from sklearn.datasets import load_digits

    images = payloads(tmp_path / "digits", manifest, "val", "ffcv")
    for key, image in list(images.items())[:20]:
        original = np.rint(load_digits().images[int(key)] * 255 / 16).astype(np.uint8)
        np.testing.assert_array_equal(np.array(image), np.repeat(original[..., None], 3, axis=2))


def test_run_again_changes_nothing_even_without_the_source(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = prepare_folder(source, output)
    before = snapshot(output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert prepare_folder(source, output) == first
    shutil.rmtree(source)
    assert prepare_folder(source, output) == first
    assert snapshot(output) == before
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


def test_another_configuration_is_refused_then_replaces(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare_folder(source, output)
    before = snapshot(output)
    with pytest.raises(DataPrepError, match="samples_per_shard is 4 there, 7 in this job"):
        prepare_folder(source, output, samples_per_shard=7)
    assert snapshot(output) == before
    replaced = prepare_folder(source, output, samples_per_shard=7, overwrite=True)
    prepare_folder(source, tmp_path / "fresh" / "out", samples_per_shard=7)
    assert snapshot(output) == snapshot(tmp_path / "fresh" / "out")
    assert prepare_folder(source, output, samples_per_shard=7, overwrite=True) == replaced


def test_changed_source_and_damaged_output_are_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare_folder(source, output)
    (output / "webdataset" / "train-000001.tar").unlink()
    with pytest.raises(DataPrepError, match=r"webdataset/train-000001\.tar is missing"):
        prepare_folder(source, output)
    prepare_folder(source, output, overwrite=True)
    (source / "train" / "class_0" / "new.jpg").write_bytes(image_bytes(smooth_image(5)))
    with pytest.raises(DataPrepError, match="other samples"):
        prepare_folder(source, output)
    assert prepare_folder(source, output, overwrite=True).splits["train"].num_samples == 12


def test_foreign_shards_are_never_touched(source: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / "webdataset" / "train-000000.tar"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"precious")
    with pytest.raises(DataPrepError, match="neither a manifest nor an unfinished job"):
        prepare_folder(source, tmp_path / "out")
    assert foreign.read_bytes() == b"precious"


def test_rejected_budget(source: Path, tmp_path: Path) -> None:
    (source / "train" / "class_0" / "empty.jpg").write_bytes(b"")
    (source / "train" / "class_1" / "text.png").write_bytes(b"hello")
    whole = image_bytes(smooth_image(3, (200, 200)))
    (source / "val" / "class_1" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataPrepError, match="can't be used") as raised:
        prepare_folder(source, tmp_path / "out")
    assert "max_rejected (0) allows 0" in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataPrepError, match="not prepared"):
        load_manifest(tmp_path / "out")

    manifest = prepare_folder(source, tmp_path / "out", max_rejected=0.2)  # shards written above are kept
    lines = rejected_lines(tmp_path / "out")
    assert [(line["split"], line["key"]) for line in lines] == [
        ("train", "class_0/empty"),
        ("train", "class_1/text"),
        ("val", "class_1/half"),
    ]
    assert [line["location"] for line in lines][2] == "val/class_1/half.jpg"
    assert "empty" in lines[0]["reason"]
    assert "not a JPEG" in lines[1]["reason"]
    assert "Premature end" in lines[2]["reason"]
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 11, "val": 5}
    assert manifest.preprocessing["num_rejected"] == 3
    assert verify(tmp_path / "out").ok
    prepare_folder(source, tmp_path / "fresh" / "out", max_rejected=0.2)
    assert snapshot(tmp_path / "fresh" / "out") == snapshot(tmp_path / "out")


def test_shards_without_a_good_image_are_left_out(source: Path, tmp_path: Path) -> None:
    (source / "train" / "class_0" / "empty.jpg").write_bytes(b"")
    manifest = prepare_folder(source, tmp_path / "out", samples_per_shard=1, max_rejected=0.1)
    assert manifest.splits["train"].num_samples == 11
    assert len(manifest.splits["train"].formats["ffcv"]) == 11
    assert verify(tmp_path / "out").ok
    assert manifest.digest == prepare_folder(source, tmp_path / "many", max_rejected=0.1).digest


@pytest.mark.parametrize("where", ["below a file", "inside the source", "the source itself"])
def test_bad_output_is_refused_before_any_work(source: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    output = {
        "below a file": tmp_path / "file" / "out",
        "inside the source": source / "out",
        "the source itself": source,
    }[where]
    before = snapshot(tmp_path)
    with pytest.raises(DataPrepError, match=r"output\.path"):
        prepare_folder(source, output)
    assert snapshot(tmp_path) == before


def test_missing_source_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match=r"source\.path: .*absent is not a folder"):
        prepare_folder(tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_jobs_cant_write_one_folder(source: Path, tmp_path: Path) -> None:
    config = folder_job(source, tmp_path / "out")

    def second_job(line: str) -> None:
        if "shards" in line:
            prepare(config, progress=lambda line: None)

    with pytest.raises(DataPrepError, match=rf"another data-prep job .*: process {os.getpid()} on "):
        prepare(config, progress=second_job)
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_dataset_finished_while_a_job_was_planning_is_not_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = convert._list_and_plan

    def slow_plan(*arguments: Any) -> Any:
        monkeypatch.setattr(convert, "_list_and_plan", plan)
        prepare_folder(source, tmp_path / "out", samples_per_shard=2, max_rejected=0.1)
        return plan(*arguments)

    monkeypatch.setattr(convert, "_list_and_plan", slow_plan)
    with pytest.raises(DataPrepError, match="holds a finished dataset that is not what this job makes"):
        prepare_folder(source, tmp_path / "out", samples_per_shard=3, max_rejected=0.1)
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    "change",
    [
        {"formats": ()},
        {"formats": ("ffcv", "ffcv")},
        {"formats": ("zip",)},
        {"samples_per_shard": 0},
        {"shuffle_seed": -1},
        {"max_rejected": 1.5},
        {"unknown": 1},
    ],
)
def test_bad_values_are_caught_by_the_schema(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        folder_job(tmp_path, tmp_path / "out", **change)
