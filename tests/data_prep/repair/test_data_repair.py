"""Repair: a damaged file is made anew to the byte, from the other format or from the source, or is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from coco_files import make_coco
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prep_helpers import folder_job, image_bytes, make_folder, make_scenes, smooth_image, snapshot

from data_prep.config import Ade20kSource, CocoSource, DigitsSource, OutputConfig, PrepareConfig
from data_prep.dataset.index import ENCODED, RAW_RGB, read_index
from data_prep.dataset.manifest import load_manifest
from data_prep.errors import DataPrepError
from data_prep.output_folder import exclusive_folder
from data_prep.prepare import prepare
from data_prep.repair.repair import repair
from data_prep.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source of JPEG (RGB, grey, CMYK), PNG and one unreadable image, and the dataset made of it."""
    root = tmp_path_factory.mktemp("repair")
    source = make_folder(root / "source")
    (source / "train" / "class_0" / "broken.jpg").write_bytes(image_bytes(smooth_image(9))[:200])
    prepare(folder_job(source, root / "data", max_rejected=0.5), progress=lambda line: None)
    return source, root / "data"


@pytest.fixture
def dataset(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy whose source still is where it was."""
    return Path(shutil.copytree(made[1], tmp_path / "data"))


@pytest.fixture
def orphan(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy whose source is gone."""
    source, data = tmp_path / "source", tmp_path / "data"
    shutil.copytree(made[0], source)
    prepare(folder_job(source, data, max_rejected=0.5), progress=lambda line: None)
    shutil.rmtree(source)
    return data


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)


def shard(folder: Path, kind: str, split: str = "train") -> Path:
    return sorted((folder / ("ffcv" if kind == "beton" else "webdataset")).glob(f"{split}*.{kind}"))[0]


def index(path: Path) -> Path:
    return path.with_suffix(".index.arrow")


def damage_payload(path: Path, position: int) -> None:
    row = read_index(index(path)).row(position)
    flip(path, row.offset + row.length // 2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose source is gone."""
    root = tmp_path_factory.mktemp("alone")
    source = make_folder(root / "source", val=9)
    (source / "train" / "class_0" / "broken.jpg").write_bytes(image_bytes(smooth_image(9))[:200])
    prepare(folder_job(source, root / "data", max_rejected=0.5), progress=lambda line: None)
    shutil.rmtree(source)
    return root / "data"


def derivable(folder: Path) -> list[Path]:
    """Shards whose twin holds all of them: every .beton, and tars without CMYK files (make_folder's third kind)."""
    tars = [
        tar
        for tar in sorted((folder / "webdataset").glob("*.tar"))
        if not any(int(key.rpartition("_")[2]) % 4 == 2 for key in read_index(index(tar)).keys.to_pylist())
    ]
    assert tars
    return [*tars, *sorted((folder / "ffcv").glob("*.beton"))]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_one_damaged_shard_is_mended_from_its_twin(
    alone: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """All flips, cuts and deletions of any of a shard's files of one format, without the source."""
    folder = Path(shutil.copytree(alone, tmp_path_factory.mktemp("copy") / "data"))
    before = snapshot(folder)
    victim = data.draw(st.sampled_from(derivable(folder)))
    for path in data.draw(st.sampled_from([[victim], [index(victim)], [victim, index(victim)]])):
        match data.draw(st.sampled_from(["flip", "cut", "delete", "grow"])):
            case "flip":
                flip(path, data.draw(st.integers(0, path.stat().st_size - 1)), data.draw(st.integers(0, 7)))
            case "cut":
                path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, path.stat().st_size - 1))])
            case "grow":
                path.write_bytes(path.read_bytes() + b"\0")
            case _:
                path.unlink()
    report = repair(folder)
    assert report.ok, report.failed
    assert report.repaired and snapshot(folder) == before


def test_png_of_raw_pixels_is_encoded_again(tmp_path: Path) -> None:
    output = OutputConfig(path=tmp_path / "digits", samples_per_shard=400)
    prepare(PrepareConfig(source=DigitsSource(), output=output), progress=lambda line: None)
    before = snapshot(tmp_path / "digits")
    tar = shard(tmp_path / "digits", "tar")
    tar.write_bytes(tar.read_bytes()[:50_000])
    report = repair(tmp_path / "digits")
    assert report.repaired == {"webdataset/train-000000.tar": "the intact samples of this shard"}
    assert snapshot(tmp_path / "digits") == before


def test_two_damaged_files_mend_each_other(orphan: Path) -> None:
    before = snapshot(orphan)
    tar, beton = orphan / "webdataset/train-000001.tar", orphan / "ffcv/train-000001.beton"
    encodings = read_index(index(beton)).encoding.tolist()
    damage_payload(tar, encodings.index(ENCODED))
    damage_payload(beton, encodings.index(RAW_RGB))
    assert len(repair(orphan).repaired) == 2
    assert snapshot(orphan) == before


def test_the_same_sample_damaged_in_both_and_no_source_changes_nothing(orphan: Path) -> None:
    for kind in ("tar", "beton"):
        damage_payload(shard(orphan, kind), 2)
    index(shard(orphan, "tar", "val")).unlink()
    before = snapshot(orphan)
    report = repair(orphan)
    assert not report.ok
    assert set(report.failed) == {"webdataset/train-000000.tar", "ffcv/train-000000.beton"}
    key = read_index(index(shard(orphan, "tar"))).key(2)
    for reason in report.failed.values():
        assert f"sample {key} can't be had from the files that are left; source.path: " in reason
    assert list(report.repaired) == ["webdataset/val-000000.index.arrow"]  # what can be mended is
    after = snapshot(orphan)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("from_source", [False, True])
def test_the_source_gives_what_both_formats_lost(dataset: Path, from_source: bool) -> None:
    before = snapshot(dataset)
    for kind in ("tar", "beton"):
        damage_payload(shard(dataset, kind), 2)
        index(shard(dataset, kind, "val")).unlink()
        shard(dataset, kind, "val").write_bytes(b"")
    report = repair(dataset, from_source=from_source)
    assert report.ok, report.failed
    assert set(report.repaired.values()) == {"the source"} and len(report.repaired) == 6
    assert snapshot(dataset) == before
    assert verify(dataset).ok


def test_a_source_that_changed_is_not_used(orphan: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    for kind in ("tar", "beton"):
        damage_payload(shard(orphan, kind), 0)
    before = snapshot(orphan)
    source = Path(shutil.copytree(made[0], tmp_path / "source"))
    for path in source.rglob("*.jpeg"):
        path.write_bytes(image_bytes(smooth_image(77)))
    report = repair(orphan)
    assert "it is another file" in report.failed["webdataset/train-000000.tar"]
    next(source.rglob("*.jpeg")).unlink()
    report = repair(orphan)
    assert "has other samples or classes now" in report.failed["webdataset/train-000000.tar"]
    assert snapshot(orphan) == before


def test_an_intact_tar_gives_its_own_index_again(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    prepare(folder_job(source, tmp_path / "data", formats=("webdataset",)), progress=lambda line: None)
    shutil.rmtree(source)
    before = snapshot(tmp_path / "data")
    index(shard(tmp_path / "data", "tar")).unlink()
    assert repair(tmp_path / "data").ok
    assert snapshot(tmp_path / "data") == before


def test_a_whole_format_lost_comes_back(orphan: Path) -> None:
    before = snapshot(orphan)
    shutil.rmtree(orphan / "ffcv")
    assert repair(orphan).ok
    assert snapshot(orphan) == before
    assert repair(orphan).repaired == {}
    shutil.rmtree(orphan / "webdataset")
    report = repair(orphan)
    assert "source.path" in report.failed["webdataset/train-000000.tar"]
    assert "webdataset/train-000002.tar" in report.repaired


def test_no_repair_without_a_manifest_or_beside_a_job(dataset: Path) -> None:
    with exclusive_folder(dataset), pytest.raises(DataPrepError, match="another data-prep job is writing"):
        repair(dataset)
    flip(dataset / "manifest.json", 300)
    with pytest.raises(DataPrepError, match=r"manifest\.json"):
        repair(dataset)
    with pytest.raises(DataPrepError, match="no dataset manifest"):
        repair(dataset / "nowhere")
    assert not (dataset / "nowhere").exists()


def test_rejected_samples_leave_their_room_in_the_beton(made: tuple[Path, Path]) -> None:
    """What the property above relies on: the first shard does lack a sample."""
    manifest = load_manifest(made[1])
    shards = manifest.splits["train"].formats["ffcv"]
    assert manifest.preprocessing["num_rejected"] == 1
    assert any(shard.num_samples < 4 for shard in shards[:-1])


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_annotated_shards_are_mended_from_their_twins(tmp_path: Path, task: str) -> None:
    source = (
        CocoSource(path=make_coco(tmp_path / "source"))
        if task == "detection"
        else Ade20kSource(path=make_scenes(tmp_path / "source"))
    )
    output = OutputConfig(path=tmp_path / "data", samples_per_shard=3)
    prepare(PrepareConfig(source=source, output=output), progress=lambda line: None)
    shutil.rmtree(tmp_path / "source")
    before = snapshot(tmp_path / "data")
    for kind in ("webdataset", "ffcv"):
        shutil.rmtree(tmp_path / "data" / kind)
        assert repair(tmp_path / "data").ok
        assert snapshot(tmp_path / "data") == before
    for kind, position in (("tar", 0), ("beton", 1)):
        path = shard(tmp_path / "data", kind)
        row = read_index(index(path)).row(position)
        flip(path, row.annotation_offset + 1)
    assert len(repair(tmp_path / "data").repaired) == 2
    for path in (tmp_path / "data").rglob("*.arrow"):
        path.unlink()
    assert repair(tmp_path / "data").ok  # the tars' own tables hold all, as the images passed through
    assert snapshot(tmp_path / "data") == before
