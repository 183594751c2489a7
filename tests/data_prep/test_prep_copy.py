"""Copies between folders and a real S3 server: whole, checked, resumable, never mistaken for a dataset half-way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prepared import digits
from s3_server import BUCKET, S3Proxy, s3_server

from data_prep import copy_dataset as copy_module
from data_prep.copy_dataset import copy_dataset
from data_prep.dataset.manifest import MANIFEST_NAME, load_manifest, write_manifest
from data_prep.dataset.places import Folder, Remote, place_of
from data_prep.errors import DataPrepError, Unreachable
from data_prep.storage.remote_files import open_filesystem
from data_prep.verify import verify, verify_remote


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Proxy]:
    with s3_server() as proxy:
        yield proxy


def quiet(_line: str) -> None:
    """No progress."""


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(digits("webdataset"), folder)
    return folder


def test_to_s3_and_back_is_the_same_dataset(s3: S3Proxy, tmp_path: Path) -> None:
    source, url = digits("webdataset"), f"s3://{BUCKET}/round-trip"
    lines: list[str] = []
    manifest = copy_dataset(str(source), url, verify=True, progress=lines.append)
    assert manifest == load_manifest(source)
    assert lines[-1].startswith("14 of 14 files: ")
    copy_dataset(url, str(tmp_path / "back"), progress=quiet)
    assert files_in(tmp_path / "back") == files_in(source)
    assert verify(tmp_path / "back").ok
    copy_dataset(url, f"s3://{BUCKET}/second", progress=quiet)
    assert Remote(f"s3://{BUCKET}/second").read(MANIFEST_NAME) == (source / MANIFEST_NAME).read_bytes()


def test_what_is_there_is_kept_and_damage_in_a_folder_is_repaired(tmp_path: Path) -> None:
    source, target = digits("webdataset"), tmp_path / "copy"
    copy_dataset(str(source), str(target), progress=quiet)
    shard = next(target.glob("*/train-000001.tar"))
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    lines: list[str] = []
    copy_dataset(str(source), f"file://{target}", progress=lines.append)
    assert lines[-1].endswith("13 files were there")
    assert files_in(target) == files_in(source)


def test_an_interrupted_copy_is_no_dataset_and_goes_on(
    s3: S3Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, url = str(digits("webdataset")), f"s3://{BUCKET}/interrupted"
    original = copy_module._Copy.file

    def stopped(self: copy_module._Copy, file: copy_module.DatasetFile) -> None:
        if file.name.endswith("train-000003.tar"):
            raise KeyboardInterrupt
        original(self, file)

    for target in (url, str(tmp_path / "copy")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(copy_module._Copy, "file", stopped)
            copy_dataset(source, target, progress=quiet, threads=1)
        assert place_of(target).size(MANIFEST_NAME) is None
        lines: list[str] = []
        copy_dataset(source, target, progress=lines.append)
        assert "files were there" in lines[-1]
        assert place_of(target).read(MANIFEST_NAME) == Path(source, MANIFEST_NAME).read_bytes()
    assert files_in(tmp_path / "copy") == files_in(Path(source))


def test_an_upload_that_fails_leaves_no_object(s3: S3Proxy) -> None:
    place = Remote(f"s3://{BUCKET}/uploads")

    def broken() -> Iterator[bytes]:
        yield bytes(12 << 20)
        raise DataPrepError("the source is damaged")

    with pytest.raises(DataPrepError, match="the source is damaged"):
        place.write("big", broken)
    assert place.size("big") is None
    place.write("big", lambda: iter([bytes(12 << 20), b"end"]))
    assert place.size("big") == (12 << 20) + 3


def test_a_damaged_source_is_not_copied(s3: S3Proxy, tmp_path: Path) -> None:
    source = copied(tmp_path)
    shard = next(source.glob("*/val-000000.tar"))
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    for target in (f"s3://{BUCKET}/damaged", str(tmp_path / "copy")):
        with pytest.raises(DataPrepError, match=r"val-000000\.tar is damaged .*`convmlp data repair`"):
            copy_dataset(str(source), target, progress=quiet)
        assert place_of(target).size(MANIFEST_NAME) is None
        assert place_of(target).size(str(shard.relative_to(source))) is None
    shard.unlink()
    with pytest.raises(DataPrepError, match=r"can't read .*val-000000\.tar: No such file"):
        copy_dataset(str(source), str(tmp_path / "copy"), progress=quiet)


@pytest.mark.slow
def test_another_dataset_is_not_overwritten(s3: S3Proxy, tmp_path: Path) -> None:
    other, url = copied(tmp_path), f"s3://{BUCKET}/other"
    manifest = load_manifest(other)
    write_manifest(manifest.model_copy(update={"digest": f"sha256:{'1' * 64}", "checksum": ""}), other)
    copy_dataset(str(digits("webdataset")), url, progress=quiet)
    for target in (url, str(tmp_path / "copy")):
        copy_dataset(str(digits("webdataset")), target, progress=quiet)
        before = place_of(target).read(MANIFEST_NAME)
        with pytest.raises(DataPrepError, match=r"holds another dataset \(digits .* choose another"):
            copy_dataset(str(other), target, progress=quiet)
        assert place_of(target).read(MANIFEST_NAME) == before


@pytest.mark.slow
def test_an_object_changed_without_its_size_is_found_by_verify(s3: S3Proxy) -> None:
    source, url = digits("webdataset"), f"s3://{BUCKET}/changed"
    copy_dataset(str(source), url, progress=quiet)
    shard = next(source.glob("*/val-000000.tar"))
    name = str(shard.relative_to(source))
    fs, path = open_filesystem(f"{url}/{name}")
    fs.pipe_file(path, bytes(shard.stat().st_size))
    copy_dataset(str(source), url, progress=quiet)
    assert Remote(url).read(name) != shard.read_bytes()
    copy_dataset(str(source), url, verify=True, progress=quiet)
    assert Remote(url).read(name) == shard.read_bytes()


def test_what_cannot_be_copied_is_said(s3: S3Proxy, tmp_path: Path) -> None:
    source = digits("webdataset")
    with pytest.raises(DataPrepError, match="can't be copied onto itself"):
        copy_dataset(str(source), f"file://{source}", progress=quiet)
    with pytest.raises(DataPrepError, match=r"can't read .*nowhere/manifest\.json"):
        copy_dataset(str(tmp_path / "nowhere"), str(tmp_path / "copy"), progress=quiet)
    with pytest.raises(DataPrepError, match="there is no such file or bucket"):
        copy_dataset(f"s3://{BUCKET}/nothing", str(tmp_path / "copy"), progress=quiet)
    with pytest.raises(DataPrepError, match="there is no such file or bucket"):
        copy_dataset(str(source), "s3://no-such-bucket/x", progress=quiet)
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / copy_module.WORK_FOLDER).mkdir()
    with pytest.raises(DataPrepError, match="holds an unfinished data-prep job"):
        copy_dataset(str(source), str(tmp_path / "busy"), progress=quiet)


def test_places_agree(s3: S3Proxy, tmp_path: Path) -> None:
    for place in (Folder(tmp_path), Remote(f"s3://{BUCKET}/places")):
        assert place.size("a/b") is None
        place.write("a/b", lambda: iter([b"one", b"two"]))
        assert place.size("a/b") == 6
        assert place.read("a/b") == b"".join(place.stream("a/b")) == b"onetwo"
        place.write("empty", lambda: iter([]))
        assert place.size("empty") == 0


@pytest.mark.slow
def test_a_remote_dataset_is_verified_as_a_folder_is(s3: S3Proxy) -> None:
    source, url = digits("webdataset"), f"s3://{BUCKET}/verified"
    copy_dataset(str(source), url, progress=quiet)
    report, local = verify_remote(url), verify(source)
    assert (report.ok, report.num_shards, report.num_payloads) == (True, local.num_shards, local.num_payloads)
    assert str(report.path) == url
    fs, path = open_filesystem(url)
    shard = next(source.glob("*/val-000000.tar"))
    name = str(shard.relative_to(source))
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    fs.pipe_file(f"{path}/{name}", bytes(content))
    assert verify_remote(url, deep=False).ok
    assert f"{name}: SHA-256 differs from the manifest's" in verify_remote(url).problems
    fs.pipe_file(f"{path}/{name}", b"short")
    assert any("has 5 bytes" in problem for problem in verify_remote(url, deep=False).problems)
    fs.rm_file(f"{path}/{name}")
    assert any(name in problem for problem in verify_remote(url).problems)
    assert "no such file" in verify_remote(f"s3://{BUCKET}/nothing").problems[0]
    s3.faults.always = 403
    with pytest.raises(Unreachable, match="access is refused"):
        verify_remote(url)
    s3.reset()
