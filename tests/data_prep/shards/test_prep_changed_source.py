"""A source that changes under the same names: found, said, and taken over when the job says so; never mixed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from coco_files import make_coco
from prep_helpers import folder_job, image_bytes, make_folder, prepare_folder, smooth_image, snapshot

from data_prep import prepare as convert
from data_prep.config import CocoSource, OutputConfig, PrepareConfig
from data_prep.errors import DataPrepError
from data_prep.prepare import check, prepare
from data_prep.shards.shard import ShardRecord, ShardTask, write_shard

FIRST = Path("train", "class_0", "image_0.JPEG")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "source")


def replace_image(path: Path, *, keep_time: bool = False) -> None:
    before = path.stat()
    path.write_bytes(image_bytes(smooth_image(77)))
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size != before.st_size


def test_an_image_repaired_in_place_is_taken(tmp_path: Path, source: Path) -> None:
    whole = (source / FIRST).read_bytes()
    (source / FIRST).write_bytes(whole[:-60])
    with pytest.raises(DataPrepError, match="1 of 16 images can't be used"):
        prepare_folder(source, tmp_path / "out")
    (source / FIRST).write_bytes(whole)
    assert prepare_folder(source, tmp_path / "out").splits["train"].num_samples == 11


def test_a_rejection_is_never_final(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing about the file has changed: it may have been the mount."""
    job = folder_job(source, tmp_path / "out")
    real = convert.write_shard

    def blind(task: ShardTask) -> ShardRecord:
        with monkeypatch.context() as patch:
            patch.setattr("data_prep.sources.image_folder.read_file", lambda name: b"")
            return real(task)

    with pytest.raises(DataPrepError, match="images can't be used"):
        prepare(job, map_shards=lambda _, tasks: map(blind, tasks), progress=lambda _: None)
    assert prepare(job, progress=lambda _: None).splits["train"].num_samples == 11


@pytest.mark.parametrize("keep_time", [False, True])
def test_content_that_changed_under_the_same_name_is_said_and_taken_over(
    tmp_path: Path, source: Path, keep_time: bool
) -> None:
    before = prepare_folder(source, tmp_path / "out")
    replace_image(source / FIRST, keep_time=keep_time)
    message = r"1 files of the source have changed since: train/class_0/image_0.JPEG; choose .* output.overwrite: true"
    for command in (prepare, check):
        with pytest.raises(DataPrepError, match=message):
            command(folder_job(source, tmp_path / "out"), progress=lambda _: None)
    after = prepare_folder(source, tmp_path / "out", overwrite=True)
    assert after.digest != before.digest
    assert after.digest == prepare_folder(source, tmp_path / "fresh").digest
    lines: list[str] = []
    prepare(folder_job(source, tmp_path / "out"), progress=lines.append)
    assert "is prepared already" in lines[-1]


def test_a_touched_or_copied_source_is_no_other(tmp_path: Path, source: Path) -> None:
    first = prepare_folder(source, tmp_path / "out")
    for path in source.rglob("*.*"):
        os.utime(path)
    lines: list[str] = []
    assert prepare(folder_job(source, tmp_path / "out"), progress=lines.append) == first
    assert "is prepared already" in lines[-1]
    noted = (tmp_path / "out" / "source.json").read_bytes()
    prepare_folder(source, tmp_path / "out")
    assert (tmp_path / "out" / "source.json").read_bytes() == noted


def test_what_was_rejected_is_looked_at_again(tmp_path: Path, source: Path) -> None:
    whole = (source / FIRST).read_bytes()
    (source / FIRST).write_bytes(b"")
    prepare_folder(source, tmp_path / "out", max_rejected=0.1)
    (source / FIRST).write_bytes(whole)
    with pytest.raises(DataPrepError, match="1 files of the source have changed"):
        prepare_folder(source, tmp_path / "out", max_rejected=0.1)


def test_overwrite_always_redoes(tmp_path: Path, source: Path) -> None:
    prepare_folder(source, tmp_path / "out")
    wanted = snapshot(tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    prepare_folder(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns != before
    assert {name: value for name, value in snapshot(tmp_path / "out").items() if name != "manifest.json"} == {
        name: value for name, value in wanted.items() if name != "manifest.json"
    }


def test_a_resumed_job_mixes_nothing_and_keeps_what_is_the_same(tmp_path: Path, source: Path) -> None:
    job, written = folder_job(source, tmp_path / "out"), list[str]()

    def until(count: int) -> Any:
        def some(_: Any, tasks: Any) -> Any:
            for number, task in enumerate(tasks):
                if number == count:
                    raise KeyboardInterrupt
                yield write_shard(task)

        return some

    with pytest.raises(KeyboardInterrupt):
        prepare(job, map_shards=until(3), progress=lambda _: None)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "webdataset").glob("*.tar")}
    assert len(kept) == 3
    replace_image(source / FIRST)
    found = prepare(job, progress=written.append)
    assert found.digest == prepare_folder(source, tmp_path / "fresh").digest
    same = [path for path, time in kept.items() if path.stat().st_mtime_ns == time]
    assert len(same) in (2, 3)  # all but the one that held it


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path, source: Path) -> None:
    def changing(_: Any, tasks: Any) -> Any:
        yield from map(write_shard, tasks)
        replace_image(source / FIRST)

    job = folder_job(source, tmp_path / "out")
    with pytest.raises(DataPrepError, match="1 files of the source changed while they were being prepared"):
        prepare(job, map_shards=changing, progress=lambda _: None)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert prepare(job, progress=lambda _: None).digest == prepare_folder(source, tmp_path / "fresh").digest


def coco_job(root: Path, output: Path, **settings: Any) -> PrepareConfig:
    return PrepareConfig(source=CocoSource(path=root), output=OutputConfig(path=output, **settings))


def test_a_document_corrected_at_the_same_length_is_seen(tmp_path: Path) -> None:
    root = make_coco(tmp_path / "coco")
    first = prepare(coco_job(root, tmp_path / "out"), progress=lambda _: None)
    path = root / "annotations" / "instances_train2017.json"
    text, times = path.read_text(), path.stat()
    number = next(item["category_id"] for item in json.loads(text)["annotations"])
    others = [item["id"] for item in json.loads(text)["categories"] if item["id"] != number]
    other = next(one for one in others if len(str(one)) == len(str(number)))
    path.write_text(text.replace(f'"category_id": {number}', f'"category_id": {other}', 1))
    assert path.stat().st_size == times.st_size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataPrepError, match=r"instances_train2017.json has another content now"):
        prepare(coco_job(root, tmp_path / "out"), progress=lambda _: None)
    again = prepare(coco_job(root, tmp_path / "out", overwrite=True), progress=lambda _: None)
    assert again.digest != first.digest


def test_a_dataset_of_an_older_release_and_one_without_its_source_stay(tmp_path: Path, source: Path) -> None:
    first = prepare_folder(source, tmp_path / "out")
    replace_image(source / FIRST)
    (tmp_path / "out" / "source.json").unlink()  # older releases kept none
    assert prepare_folder(source, tmp_path / "out") == first
    shutil.rmtree(source)
    assert prepare_folder(source, tmp_path / "out") == first
