"""Sources: listings are deterministic, safe and refuse what they don't understand."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prep_helpers import image_bytes, make_folder, prepare_folder, smooth_image
from published_minis import cifar10_files

from data_prep.config import Cifar10Source, ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.dataset.index import read_index
from data_prep.errors import DataPrepError
from data_prep.prepare import prepare
from data_prep.sources import Listing, open_source
from data_prep.sources.parsing.plain_pickle import load_plain_pickle
from data_prep.verify import verify


def listing(path: Path, **layout: Any) -> Listing:
    return open_source(ImageFolderSource(path=path, **layout)).listing()


def test_image_folder_lists_images_only_sorted_by_key(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    (source / "train" / "class_0" / "notes.txt").write_text("x")
    (source / "train" / "class_0" / ".hidden.jpg").write_text("x")
    (source / "train" / "class_0" / "deeper").mkdir()
    (source / "train" / "class_0" / "deeper" / "image.JPEG").write_bytes(b"")
    found = listing(source)
    keys = [ref.key for ref in found.splits["train"]]
    assert keys == sorted(keys)
    assert "class_0/deeper/image" in keys
    assert len(keys) == 12
    assert {ref.label for ref in found.splits["train"]} == {0, 1, 2}
    assert found == listing(source)


def test_names_that_tar_readers_would_split_wrongly(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "train" / "class.v1"
    folder.mkdir(parents=True)
    names = ["a.b.jpg", "a_b.jpg", "ä%.jpg", "twin.jpg", "twin.png", os.fsdecode(b"bad\xff.jpg")]
    for name in names:
        (folder / name).write_bytes(image_bytes(smooth_image(0)))
    keys = [ref.key for ref in listing(tmp_path / "source", splits={"train": "train"}).splits["train"]]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and "." not in key for key in keys)
    assert "class%2Ev1/a%2Eb" in keys
    assert "class%2Ev1/twin%2Epng" in keys
    prepare_folder(tmp_path / "source", tmp_path / "out", splits={"train": "train"})
    assert verify(tmp_path / "out").ok


def test_val_fraction_depends_on_names_only(tmp_path: Path) -> None:
    root = tmp_path / "flat"
    for i in range(200):
        folder = root / f"class_{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(b"")
    found = listing(root, val_fraction=0.25)
    held_out = {ref.key for ref in found.splits["val"]}
    assert 30 <= len(held_out) <= 70
    assert len(found.splits["train"]) == 200 - len(held_out)
    (root / "class_0" / "0.jpg").unlink()
    assert {ref.key for ref in listing(root, val_fraction=0.25).splits["val"]} == held_out - {"class_0/0"}
    assert list(listing(root, val_fraction=0).splits) == ["train"]


def test_links_must_stay_inside(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    inside = source / "train" / "class_0" / "again.jpg"
    inside.symlink_to(source / "train" / "class_0" / "image_0.JPEG")
    assert len(listing(source).splits["train"]) == 12
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"x")
    link = source / "train" / "class_0" / "link.jpg"
    link.symlink_to(outside)
    with pytest.raises(DataPrepError, match=r"link\.jpg leads out of source\.path"):
        listing(source)
    link.unlink()
    (source / "train" / "class_9").symlink_to(tmp_path)
    with pytest.raises(DataPrepError, match="class_9 leads out"):
        listing(source)
    (source / "train" / "class_9").unlink()
    (source / "train" / "class_0" / "loop").symlink_to(source / "train" / "class_0")
    with pytest.raises(DataPrepError, match="loop"):
        listing(source)
    moved = tmp_path / "elsewhere"
    moved.symlink_to(make_folder(tmp_path / "other"))
    assert len(listing(moved).splits["train"]) == 11


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, r"source\.splits\.train: .* is not a folder"),
        ({"splits": {"train": "class_0"}}, "has no class folders"),
        ({"splits": {"train": ".."}}, r"leads out of source\.path"),
        ({"val_fraction": 0.5, "class_names": "absent.txt"}, r"source\.class_names: can't read"),
    ],
)
def test_wrong_layouts(tmp_path: Path, layout: dict[str, Any], message: str) -> None:
    make_folder(tmp_path / "source")
    with pytest.raises(DataPrepError, match=message):
        listing(tmp_path / "source" / "train", **layout)


def test_unknown_val_class_and_empty_split(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    (source / "val" / "class_7").mkdir()
    with pytest.raises(DataPrepError, match="class_7"):
        listing(source)
    shutil.rmtree(source / "val")
    (source / "val" / "class_1").mkdir(parents=True)
    with pytest.raises(DataPrepError, match=r"split 'val' .* has no images"):
        listing(source)


def test_readable_class_names(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    mapping = source / "names.txt"
    mapping.write_text("class_0 tench, Tinca tinca\nclass_1 crane\nclass_2 crane\nclass_3 unused\n")
    assert listing(source, class_names="names.txt").classes == ["tench", "crane (class_1)", "crane (class_2)"]
    mapping.write_text("class_0 tench\n")
    with pytest.raises(DataPrepError, match="no name for 2 class folders: class_1, class_2"):
        listing(source, class_names=mapping)


@pytest.mark.parametrize("layout", ["folder", "parent", "archive"])
def test_cifar_pickles(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = cifar10_files()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    path = {"folder": folder, "parent": tmp_path, "archive": archive}[layout]
    with pytest.raises(DataPrepError, match="published is"):
        open_source(Cifar10Source(path=path)).listing()
    config = PrepareConfig(
        source=Cifar10Source(path=path, check_md5=False),
        output=OutputConfig(path=tmp_path.parent / f"o{layout}"),
    )
    manifest = prepare(config, progress=lambda line: None)
    assert {name: split.num_samples for name, split in manifest.splits.items()} == {"train": 20, "val": 4}
    assert manifest.classes == ["airplane", "automobile", "bird"]
    (shard,) = manifest.splits["val"].formats["ffcv"]
    index = read_index(config.output.path / shard.index)
    row = index.row(index.keys.to_pylist().index("test_batch-00002"))
    payload = (config.output.path / shard.file).read_bytes()[row.offset : row.offset + row.length]
    expected = pickle.loads(files["test_batch"], encoding="bytes")[b"data"][2].reshape(3, 32, 32)
    np.testing.assert_array_equal(
        np.frombuffer(payload, np.uint8).reshape(32, 32, 3), expected.transpose(1, 2, 0)
    )
    assert row.label == 2
    assert verify(config.output.path).ok


def test_cifar_image_folders(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "cifar10")
    (source / "val").rename(source / "test")
    found = open_source(Cifar10Source(path=source)).listing()
    assert {name: len(refs) for name, refs in found.splits.items()} == {"train": 11, "val": 5}
    with pytest.raises(DataPrepError, match="no CIFAR-10 at"):
        open_source(Cifar10Source(path=source / "train")).listing()


class _Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("how", ["system", "eval", "getattr", "open"])
def test_malicious_pickles_are_refused(tmp_path: Path, protocol: int, how: str) -> None:
    trace = tmp_path / "trace"
    evil = {
        "system": _Evil(os.system, f"touch {trace}"),
        "eval": _Evil(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": _Evil(getattr, np.ndarray, "tofile"),
        "open": _Evil(io.open, str(trace), "w"),
    }[how]
    content = pickle.dumps({b"data": evil, b"labels": [1]}, protocol=protocol)
    with pytest.raises(DataPrepError, match="not allowed"):
        load_plain_pickle(content, where="data_batch_1")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps([1]), pickle.dumps({1: 2})[:-3]])
def test_damaged_pickles(content: bytes) -> None:
    with pytest.raises(DataPrepError, match="data_batch_1"):
        load_plain_pickle(content, where="data_batch_1")


def test_plain_pickles_load() -> None:
    """Protocol 2 is what was published; numpy's way of pickling changed with protocol 5."""
    for protocol in range(5):
        content = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], b"name": b"x\xff"}
        loaded = load_plain_pickle(pickle.dumps(content, protocol=protocol), where="here")
        np.testing.assert_array_equal(loaded[b"data"], content[b"data"])
        assert loaded[b"name"] == b"x\xff"
