"""CIFAR, STL-10 and Flowers-102 as published: archives or folders, checked, fetched when asked for."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prep_helpers import image_bytes, smooth_image
from published_minis import (
    STL10_CLASSES,
    cifar10_files,
    cifar100_files,
    flowers102_files,
    mat_bytes,
    python2_pickle,
    stl10_files,
    tar_bytes,
    write_files,
    write_tar,
)
from torchvision import datasets

from data_prep.config import (
    Cifar10Source,
    Cifar100Source,
    Flowers102Source,
    OutputConfig,
    PrepareConfig,
    Stl10Source,
)
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare
from data_prep.sources import Listing, open_source
from data_prep.sources.parsing.mat_file import read_mat
from data_prep.sources.parsing.plain_pickle import load_plain_pickle
from data_prep.storage.locks import OF_FOLDER, holding
from data_prep.verify import verify


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_bytes({f"{folder}/{name}": content for name, content in files.items()}))


def listing(source: Any) -> Listing:
    return open_source(source).listing()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server for a folder: its address and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/", folder
        http.shutdown()
        thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_python2_pickles_load() -> None:
    pixels = np.arange(6144, dtype=np.uint8).reshape(2, 3072)
    content = python2_pickle({"data": pixels, "labels": [3, 300], "batch_label": "x" * 300})
    loaded = load_plain_pickle(content, where="here")
    np.testing.assert_array_equal(loaded[b"data"], pixels)
    assert loaded[b"labels"] == [3, 300]
    assert loaded[b"batch_label"] == b"x" * 300
    assert pickle.loads(content, encoding="latin1")["labels"] == [3, 300]  # as torchvision reads them


@pytest.mark.parametrize("labels", ["fine", "coarse"])
@pytest.mark.parametrize("layout", ["folder", "parent", "archive"])
def test_cifar100(tmp_path: Path, labels: Any, layout: str) -> None:
    files, root = cifar100_files(), tmp_path / "in"
    write_files(root / "cifar-100-python", files) if layout != "archive" else write_files(
        root, {"cifar-100-python.tar.gz": archive("cifar-100-python", files)}
    )
    path = {"folder": root / "cifar-100-python", "parent": root, "archive": root / "cifar-100-python.tar.gz"}
    with pytest.raises(DataPrepError, match="published is"):
        listing(Cifar100Source(path=path[layout]))
    source = open_source(Cifar100Source(path=path[layout], check_md5=False, labels=labels))
    found = source.listing()
    assert found.classes == (["mammals", "fish"] if labels == "coarse" else [f"fine {i}" for i in range(6)])
    assert [ref.label for ref in found.splits["train"]][:6] == (
        [0, 0, 0, 1, 1, 1] if labels == "coarse" else [0, 1, 2, 3, 4, 5]
    )
    expected = pickle.loads(files["test"], encoding="bytes")[b"data"][4].reshape(3, 32, 32).transpose(1, 2, 0)
    assert found.splits["val"][4].key == "test-00004"
    np.testing.assert_array_equal(source.read(found.splits["val"][4]), expected)


def test_cifar_layouts_and_damage(tmp_path: Path) -> None:
    with pytest.raises(
        DataPrepError, match=r"no CIFAR-100 at .*: put there cifar-100-python\.tar\.gz \(17\d MB\) from http"
    ):
        listing(Cifar100Source(path=tmp_path / "absent"))
    for split in ("train", "test"):
        write_files(tmp_path / "images" / split, {"fish/1.png": image_bytes(smooth_image(1), "PNG")})
    assert listing(Cifar100Source(path=tmp_path / "images")).classes == ["fish"]
    files = cifar10_files()
    bad = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 7]}
    folder = write_files(tmp_path / "cifar-10-batches-py", files | {"data_batch_2": python2_pickle(bad)})
    source = Cifar10Source(path=tmp_path, check_md5=False)
    with pytest.raises(DataPrepError, match="data_batch_2: label 7 is not among the 3 classes"):
        listing(source)
    (folder / "data_batch_2").write_bytes(python2_pickle(bad | {"labels": [1]}))
    with pytest.raises(DataPrepError, match="data_batch_2 does not hold CIFAR images and labels"):
        listing(source)
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataPrepError, match="put there"):
        listing(source)
    packed = tmp_path / "cifar-10-python.tar.gz"
    packed.write_bytes(archive("cifar-10-batches-py", files)[:-900])
    with pytest.raises(DataPrepError, match=r"cifar-10-python\.tar\.gz"):
        listing(source)
    assert not (folder / "data_batch_2").exists()
    packed.write_bytes(archive("elsewhere", files))
    with pytest.raises(DataPrepError, match="has no data_batch_2"):
        listing(source)
    packed.write_bytes(archive("cifar-10-batches-py", files))
    assert len(listing(source).splits["train"]) == 20
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("layout", ["folder", "parent", "archive"])
def test_stl10(tmp_path: Path, layout: str) -> None:
    files, pixels = stl10_files()
    root = tmp_path / "in"
    if layout == "archive":
        write_files(root, {"stl10_binary.tar.gz": archive("stl10_binary", files)})
    else:
        write_files(root / "stl10_binary", files)
    path = {"folder": root / "stl10_binary", "parent": root, "archive": root / "stl10_binary.tar.gz"}[layout]
    with pytest.raises(DataPrepError, match="published is"):
        listing(Stl10Source(path=path))
    source = Stl10Source(path=path, check_md5=False)
    config = PrepareConfig(source=source, output=OutputConfig(path=tmp_path / "out"))
    manifest = prepare(config, progress=lambda line: None)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 11, "val": 13}
    assert manifest.classes == STL10_CLASSES
    assert verify(tmp_path / "out").ok
    reader = open_source(source)
    for split, part in (("train", "train"), ("val", "test")):
        refs = reader.listing().splits[split]
        for i, ref in enumerate(refs):
            assert (ref.key, ref.label) == (f"{part}-{i:05d}", i % 10)
            np.testing.assert_array_equal(reader.read(ref), pixels[part][i])


def test_stl10_agrees_with_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = stl10_files(3, 2)
    write_files(tmp_path / "stl10_binary", files)
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    theirs = datasets.STL10(str(tmp_path), split="test")
    ours = open_source(Stl10Source(path=tmp_path, check_md5=False))
    for ref, (image, label) in zip(ours.listing().splits["val"], theirs, strict=False):
        np.testing.assert_array_equal(ours.read(ref), np.asarray(image))
        assert ref.label == label


def test_stl10_files_that_do_not_fit(tmp_path: Path) -> None:
    files, _ = stl10_files(3, 2)
    source = Stl10Source(path=tmp_path, check_md5=False)
    with pytest.raises(
        DataPrepError, match=r"no STL-10 at .*: put there stl10_binary\.tar\.gz \(2\.6 GB\) from http"
    ):
        listing(source)
    folder = write_files(tmp_path / "stl10_binary", files)
    (folder / "test_X.bin").write_bytes(files["test_X.bin"][:-1])
    with pytest.raises(DataPrepError, match=r"test_X\.bin has 55,295 bytes, the 2 labels"):
        listing(source)
    write_files(folder, files | {"train_y.bin": b"\x01\x02\x00"})
    with pytest.raises(DataPrepError, match="labels 0 to 2"):
        listing(source)


@pytest.mark.parametrize("packed", [True, False])
def test_flowers102(tmp_path: Path, packed: bool) -> None:
    files, root = flowers102_files(), tmp_path / "in"
    write_files(root, files)
    if not packed:
        shutil.unpack_archive(root / "102flowers.tgz", root)
        (root / "102flowers.tgz").unlink()
    with pytest.raises(DataPrepError, match=r"imagelabels\.mat has MD5 .*published is"):
        listing(Flowers102Source(path=root))
    source = Flowers102Source(path=root, check_md5=False)
    config = PrepareConfig(source=source, output=OutputConfig(path=tmp_path / "out"))
    manifest = prepare(config, progress=lambda line: None)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == dict.fromkeys(
        ("train", "val", "test"), 3
    )
    assert manifest.num_classes == 102 and manifest.classes[0] == "pink primrose"
    assert verify(tmp_path / "out").ok
    reader = open_source(source)
    refs = reader.listing().splits["train"]
    assert [(ref.key, ref.label) for ref in refs] == [(f"image_{i:05d}", (i * 11) % 102) for i in (1, 4, 7)]
    assert reader.read(refs[1]) == image_bytes(smooth_image(4))


def test_flowers102_tables_that_do_not_fit(tmp_path: Path) -> None:
    files = flowers102_files()
    source = Flowers102Source(path=tmp_path, check_md5=False)
    with pytest.raises(DataPrepError) as caught:
        listing(source)
    assert all(name in str(caught.value) for name in files)
    write_files(tmp_path, files)
    for name, content, message in (
        ("imagelabels.mat", mat_bytes(labels=[0] * 9), "label 0 is not within 1 to 102"),
        ("imagelabels.mat", mat_bytes(labels=[1.5] * 9), "not a list of whole numbers"),
        ("imagelabels.mat", mat_bytes(other=[1]), "has no variable labels"),
        ("imagelabels.mat", b"MATLAB 5.0 MAT-file" + bytes(500), "not a MATLAB file"),
        ("setid.mat", mat_bytes(trnid=[1, 2], valid=[2], tstid=[3]), "names an image twice"),
        ("setid.mat", mat_bytes(trnid=[1], valid=[2], tstid=[10]), "images 1 to 9"),
    ):
        write_files(tmp_path, files | {name: content})
        with pytest.raises(DataPrepError, match=message):
            listing(source)
    write_files(tmp_path, files | {"102flowers.tgz": gzip.compress(tar_bytes({"jpg/image_00001.jpg": b"x"}))})
    with pytest.raises(DataPrepError, match=r"has no image_00004\.jpg, .* \(8 of 9 files are missing\)"):
        listing(source)


@pytest.mark.parametrize("length", [0, 1, 130, 140, 200])
def test_damaged_mat_files(length: int) -> None:
    content = mat_bytes(labels=list(range(100)))
    with pytest.raises(DataPrepError, match=r"here is not a MATLAB file|here has no variable"):
        read_mat(content[:length], "here", "labels")


def test_unpacking_writes_nothing_else(tmp_path: Path) -> None:
    """Names and links in an archive don't decide where anything is written."""
    files, root = cifar10_files(), tmp_path / "in"
    root.mkdir()
    packed = root / "cifar-10-python.tar.gz"
    write_tar(
        packed,
        {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
        | {"../../escape": b"x", "/tmp/escape-of-a-test": b"x", "cifar-10-batches-py/other": b"x"},
        mode="w:gz",
    )
    assert len(listing(Cifar10Source(path=packed, check_md5=False)).splits["val"]) == 4
    assert {path.name for path in root.rglob("*")} == {packed.name, "cifar-10-batches-py", *files}
    assert not (tmp_path / "escape").exists()
    shutil.rmtree(root / "cifar-10-batches-py")
    with tarfile.open(packed, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataPrepError, match="7 of 7 files are missing"):
        listing(Cifar10Source(path=packed, check_md5=False))


def test_downloads_are_checked_and_named_when_whole(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = server
    files = cifar10_files()
    content = archive("cifar-10-batches-py", files)
    published = datasets.CIFAR10
    monkeypatch.setattr(published, "url", address + published.filename)
    monkeypatch.setattr(published, "tgz_md5", md5(content))
    monkeypatch.setattr(
        published, "train_list", [[f"data_batch_{i}", md5(files[f"data_batch_{i}"])] for i in range(1, 6)]
    )
    monkeypatch.setattr(published, "test_list", [["test_batch", md5(files["test_batch"])]])
    monkeypatch.setattr(published, "meta", published.meta | {"md5": md5(files["batches.meta"])})
    source = Cifar10Source(path=tmp_path / "raw" / "cifar10", download=True)
    with pytest.raises(DataPrepError, match=r"can't fetch http.*HTTP Error 404"):
        listing(source)
    (served / published.filename).write_bytes(content[:-1] + b"?")
    with pytest.raises(DataPrepError, match=r"can't fetch .*corrupted.*put it into .*cifar10"):
        listing(source)
    assert not list(source.path.iterdir())
    (source.path / ".tmp-published-killed").mkdir()
    (served / published.filename).write_bytes(content)
    assert len(listing(source).splits["train"]) == 20
    assert sorted(path.name for path in source.path.iterdir()) == ["cifar-10-batches-py", published.filename]
    (served / published.filename).unlink()
    assert len(listing(source).splits["val"]) == 4  # what is there is not fetched again


def test_flowers102_downloads_what_is_missing(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = server
    files = flowers102_files()
    write_files(served, files)
    (served / "setid.mat").rename(tmp_path / "setid.mat")
    published = datasets.Flowers102
    table = {key: (name, md5(files[name])) for key, (name, _) in published._file_dict.items()}
    monkeypatch.setattr(published, "_file_dict", table)
    monkeypatch.setattr(published, "_download_url_prefix", address)
    assert len(listing(Flowers102Source(path=tmp_path, download=True)).splits["test"]) == 3
    assert {path.name for path in (tmp_path / "jpg").iterdir()} == {
        f"image_{i:05d}.jpg" for i in range(1, 10)
    }


def test_two_jobs_do_not_unpack_into_one_folder(tmp_path: Path) -> None:
    write_files(tmp_path, {"stl10_binary.tar.gz": archive("stl10_binary", stl10_files(1, 1)[0])})
    said = f"another job is downloading or unpacking in .*: process {os.getpid()} on "
    with holding(tmp_path / OF_FOLDER), pytest.raises(DataPrepError, match=said):
        listing(Stl10Source(path=tmp_path, check_md5=False))
    assert len(listing(Stl10Source(path=tmp_path, check_md5=False)).splits["train"]) == 1


def test_how_the_files_came_is_no_part_of_the_dataset(tmp_path: Path) -> None:
    """A job that fetched its source finds its dataset finished when it is run again without."""
    write_files(tmp_path / "in" / "stl10_binary", stl10_files(3, 2)[0])
    lines: list[str] = []
    for download in (True, False):
        source = Stl10Source(path=tmp_path / "in", check_md5=False, download=download)
        config = PrepareConfig(source=source, output=OutputConfig(path=tmp_path / "out"))
        prepare(config, progress=lines.append)
    assert "is prepared already" in lines[-1]


def test_without_a_network_the_message_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.STL10, "url", "http://127.0.0.1:9/stl10_binary.tar.gz")
    with pytest.raises(
        DataPrepError, match=r"can't fetch http.*Download stl10_binary\.tar\.gz \(2\.6 GB, MD5"
    ):
        listing(Stl10Source(path=tmp_path / "stl10", download=True))
    assert not list((tmp_path / "stl10").iterdir())
