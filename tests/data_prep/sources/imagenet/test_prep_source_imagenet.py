"""ImageNet in its three layouts: the same images are the same dataset, and what is missing is named."""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from prep_helpers import image_bytes, smooth_image
from published_minis import CLASSES, WNIDS, MiniImageNet, tar_bytes, write_tar

from data_prep.config import ImageNetSource, OutputConfig, PrepareConfig
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError, RejectedSample
from data_prep.prepare import prepare
from data_prep.sources import Listing, open_source
from data_prep.sources.parsing.source_folder import read_class_lines
from data_prep.verify import verify


def listing(path: Path, **settings: Any) -> Listing:
    return open_source(ImageNetSource(path=path, **settings)).listing()


def prepare_imagenet(source: Path, output: Path, **settings: Any) -> DatasetManifest:
    config = PrepareConfig(
        source=ImageNetSource(path=source), output=OutputConfig(path=output, samples_per_shard=7), **settings
    )
    return prepare(config, progress=lambda line: None)


@pytest.fixture(scope="module")
def mini() -> MiniImageNet:
    return MiniImageNet()


@pytest.fixture(scope="module")
def layouts(mini: MiniImageNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images three times; read-only."""
    root = tmp_path_factory.mktemp("imagenet")
    made = {"tars": mini.tars, "folders": mini.folders, "kaggle": mini.kaggle}
    return {name: make(root / name) for name, make in made.items()}


def test_all_layouts_make_the_same_dataset(layouts: dict[str, Path], tmp_path: Path) -> None:
    manifests = {name: prepare_imagenet(path, tmp_path / name) for name, path in layouts.items()}
    assert len({manifest.digest for manifest in manifests.values()}) == 1
    for name, manifest in manifests.items():
        assert manifest.classes == CLASSES
        assert verify(tmp_path / name).ok


def test_labels_follow_the_sorted_wnids(layouts: dict[str, Path], mini: MiniImageNet) -> None:
    wnids = sorted(WNIDS)
    for path in layouts.values():
        found = listing(path)
        assert {ref.key: wnids[ref.label] for ref in found.splits["val"]} == {
            name.removesuffix(".JPEG"): wnid for name, wnid in mini.val_wnid.items()
        }
        assert all(ref.key.startswith(wnids[ref.label]) for ref in found.splits["train"])
        assert found.splits["train"] == sorted(found.splits["train"])


def test_reads_give_the_members_own_bytes(layouts: dict[str, Path], mini: MiniImageNet) -> None:
    for path in layouts.values():
        source = open_source(ImageNetSource(path=path))
        for split, files in (("train", mini.train), ("val", mini.val)):
            for ref in source.listing().splits[split]:
                assert source.read(ref) == files[f"{ref.key}.JPEG"]


def test_the_devkit_may_be_unpacked(layouts: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(layouts["tars"], tmp_path / "tars")
    devkit = root / "ILSVRC2012_devkit_t12.tar.gz"
    shutil.unpack_archive(devkit, root)
    devkit.unlink()
    assert listing(root) == listing(layouts["tars"])
    (root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_bytes(b"nonsense")
    with pytest.raises(DataPrepError, match=r"meta\.mat is not a MATLAB file"):
        listing(root)


def test_missing_parts_are_named(layouts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="is not a folder: put there ILSVRC"):
        listing(tmp_path / "absent")
    with pytest.raises(DataPrepError, match=r"ILSVRC2012_img_train\.tar \(148 GB\).*free account"):
        listing(tmp_path)
    (tmp_path / "tars").mkdir()
    shutil.copy(layouts["tars"] / "ILSVRC2012_img_val.tar", tmp_path / "tars")
    with pytest.raises(DataPrepError) as caught:
        listing(tmp_path / "tars")
    assert "ILSVRC2012_img_train.tar (148 GB)" in str(caught.value)
    assert "ILSVRC2012_devkit_t12.tar.gz (2.6 MB)" in str(caught.value)
    assert "ILSVRC2012_img_val.tar" not in str(caught.value)
    with pytest.raises(DataPrepError, match=r"lacks ILSVRC/Data/CLS-LOC|lacks Data/CLS-LOC/train"):
        listing(tmp_path, layout="kaggle")
    with pytest.raises(DataPrepError, match="MD5"):
        listing(layouts["tars"], check_md5=True)


def test_class_folders_must_be_complete(mini: MiniImageNet, tmp_path: Path) -> None:
    kaggle = mini.kaggle(tmp_path / "kaggle")
    data = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.rmtree(data / "train" / "n02012849")
    with pytest.raises(DataPrepError, match="1 of 6 published classes have no train images: n02012849"):
        listing(kaggle)
    folders = mini.folders(tmp_path / "folders")
    for path in (folders / "train" / "n02113186").iterdir():
        path.unlink()
    with pytest.raises(DataPrepError, match="n02113186 holds no images"):
        listing(folders)
    (folders / "train" / "n02113186").rmdir()
    with pytest.raises(DataPrepError, match="1 classes without train images: n02113186"):
        listing(folders)
    shutil.rmtree(folders / "val")
    with pytest.raises(DataPrepError, match="no val/<wnid>"):
        listing(folders)
    shutil.copytree(data / "val", folders / "val")
    with pytest.raises(DataPrepError, match="is flat"):
        listing(folders)


def test_kaggle_tables_must_fit(mini: MiniImageNet, tmp_path: Path) -> None:
    root = mini.kaggle(tmp_path / "kaggle")
    extra = root / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "ILSVRC2012_val_00099999.JPEG"
    extra.write_bytes(b"x")
    with pytest.raises(DataPrepError, match=r"LOC_val_solution\.csv lacks 1 .*ILSVRC2012_val_00099999"):
        listing(root)
    extra.unlink()
    extra.with_name("ILSVRC2012_val_00000001.JPEG").unlink()
    with pytest.raises(DataPrepError, match=r"val lacks 1 .*ILSVRC2012_val_00000001"):
        listing(root)
    twin = extra.with_name("ILSVRC2012_val_00000002.png")
    twin.write_bytes(b"x")
    with pytest.raises(DataPrepError, match="have the same image id"):
        listing(root)
    twin.unlink()
    (root / "LOC_val_solution.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataPrepError, match="not Kaggle's table"):
        listing(root)


def test_links_out_of_the_folders_are_refused(mini: MiniImageNet, tmp_path: Path) -> None:
    folders = mini.folders(tmp_path / "folders")
    outside = tmp_path / "secret.JPEG"
    outside.write_bytes(b"x")
    (folders / "train" / "n01440764" / "n01440764_9.JPEG").symlink_to(outside)
    with pytest.raises(DataPrepError, match=r"n01440764_9\.JPEG leads out"):
        listing(folders)


def test_odd_members_are_rejected_and_nothing_is_written(mini: MiniImageNet, tmp_path: Path) -> None:
    root = mini.tars(tmp_path / "source")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("../../../escape.JPEG", tarfile.REGTYPE),
            ("/absolute.JPEG", tarfile.REGTYPE),
            ("link.JPEG", tarfile.SYMTYPE),
            ("hard.JPEG", tarfile.LNKTYPE),
            ("./good.JPEG", tarfile.REGTYPE),
            ("._good.JPEG", tarfile.REGTYPE),
        ):
            member, content = tarfile.TarInfo(name), image_bytes(smooth_image(7))
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    inner = {f"{wnid}.tar": tar_bytes({f"{wnid}_1.JPEG": image_bytes(smooth_image(1))}) for wnid in WNIDS}
    inner["n01440764.tar"] = buffer.getvalue()
    write_tar(root / "ILSVRC2012_img_train.tar", inner)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataPrepError, match=r"[1-4] of 22 images can't be used"):
        prepare_imagenet(root, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    manifest = prepare_imagenet(root, tmp_path / "out", max_rejected=0.2)
    assert manifest.splits["train"].num_samples == 6
    rejected = (tmp_path / "out" / "rejected.jsonl").read_text()
    for word in ("symbolic link", "hard link", "leads out", '"key":"escape"', '"key":"absolute"'):
        assert word in rejected


def test_tars_of_something_else(mini: MiniImageNet, tmp_path: Path) -> None:
    root = mini.tars(tmp_path / "source")
    train, val = root / "ILSVRC2012_img_train.tar", root / "ILSVRC2012_img_val.tar"
    whole = val.read_bytes()
    val.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataPrepError, match=r"img_val\.tar, byte [\d,]+: it is cut short"):
        listing(root)
    write_tar(val, dict(list(mini.val.items())[1:]))
    with pytest.raises(DataPrepError, match="has 11 images, the devkit's ground truth 12"):
        listing(root)
    write_tar(val, {"cat.JPEG": b""} | mini.val)
    with pytest.raises(DataPrepError, match=r"unexpected member 'cat\.JPEG'"):
        listing(root)
    val.write_bytes(whole)
    inner = {f"{wnid}.tar": tar_bytes({f"{wnid}_1.JPEG": b"x" * 600})[:700] for wnid in WNIDS}
    write_tar(train, inner)
    with pytest.raises(DataPrepError, match=r"img_train\.tar \(n\d+\.tar inside\), byte [\d,]+: it is cut"):
        listing(root)
    write_tar(train, {"readme.txt": b"x"})
    with pytest.raises(DataPrepError, match="not the published tar of 1,000 tars"):
        listing(root)


def test_a_file_that_shrank_is_no_sample(layouts: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(layouts["tars"], tmp_path / "tars")
    source = open_source(ImageNetSource(path=root))
    last = max(source.listing().splits["val"], key=lambda ref: int(ref.location.split(":")[1]))
    os.truncate(root / "ILSVRC2012_img_val.tar", 700)
    with pytest.raises(OSError, match="was changed"):
        source.read(last)
    with pytest.raises(RejectedSample):
        source.read(last._replace(location="ILSVRC2012_img_val.tar:0:symlink"))


@pytest.mark.real_data
def test_real_images_and_the_official_classes(tmp_path: Path) -> None:
    """Real images in all layouts; class order and names as published for all 1,000 classes."""
    data = Path(os.environ.get("CONVMLP_TEST_DATA", "absent"))
    if not (data / "imagenet_sample").is_dir():
        pytest.skip("CONVMLP_TEST_DATA does not name a folder that holds imagenet_sample/")
    with (data / "imagenet_sample" / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    random.Random(0).shuffle(rows)
    rows = rows[:24]
    images = {}
    for row in rows:
        images[f"{row['wnid']}_{row['class_index']}.JPEG"] = (
            data / "imagenet_sample" / row["path"].removeprefix("imagenet_sample/")
        ).read_bytes()
    mini = MiniImageNet(images, {row["wnid"]: row["name"] for row in rows})
    digests = {
        prepare_imagenet(make(tmp_path / "in" / name), tmp_path / "out" / name).digest
        for name, make in (("tars", mini.tars), ("folders", mini.folders), ("kaggle", mini.kaggle))
    }
    assert len(digests) == 1
    if not (data / "imagenet_meta").is_dir():
        pytest.skip("images checked; CONVMLP_TEST_DATA holds no imagenet_meta/ for the classes")
    meta = data / "imagenet_meta"
    names = read_class_lines((meta / "LOC_synset_mapping.txt").read_text())
    truth = [int(line) for line in (meta / "val_labels_sorted_index.txt").read_text().split()][:3000]
    wnids = sorted(names)
    full = MiniImageNet({f"{wnid}_1.JPEG": b"x" for wnid in wnids}, names)
    full.val_wnid = {f"ILSVRC2012_val_{i:08d}.JPEG": wnids[label] for i, label in enumerate(truth, 1)}
    full.val = dict.fromkeys(full.val_wnid, b"y")
    found = listing(full.tars(tmp_path / "full"))
    assert wnids == (meta / "imagenet_synsets.txt").read_text().split()
    assert [ref.label for ref in found.splits["val"]] == truth
    assert found.classes[0] == "tench" and len(set(found.classes)) == 1000
