"""Prepared datasets in plain PyTorch and webdataset: the same samples, pixels and targets by each way."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import rectangles, stripes
from prepared import digits
from reader_helpers import damage
from reader_helpers import photos as jpegs_and_pngs
from torch.utils.data import DataLoader, default_collate
from upright_photos import SAMPLES, upright_photos
from web_server import web_server

from convmlp_platform import open_dataset
from convmlp_platform.data.dataset.sample_view import truth_of
from convmlp_platform.errors import DataError
from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset

DATASETS = {"classification": upright_photos, "detection": rectangles, "segmentation": stripes}


def expect_equal(found: Any, wanted: Any) -> None:
    """Pixels and targets of one sample, as NumPy arrays and numbers."""
    (pixels, target), (pixels_wanted, target_wanted) = found, wanted
    np.testing.assert_array_equal(np.asarray(pixels), pixels_wanted)
    if not isinstance(target_wanted, dict):
        np.testing.assert_array_equal(np.asarray(target), target_wanted)
        return
    assert target.keys() == target_wanted.keys()
    for name, value in target_wanted.items():
        np.testing.assert_array_equal(np.asarray(target[name]), value)


@pytest.mark.parametrize("task", DATASETS)
def test_a_sample_is_what_the_platforms_reader_makes_of_it(task: str) -> None:
    dataset = open_dataset(DATASETS[task](), masks=True)
    split = dataset.samples
    assert (len(dataset), dataset.task, dataset.split) == (len(split), task, "train")
    for sample, (pixels, target) in enumerate(dataset):
        image, label = split.image(sample)
        np.testing.assert_array_equal(pixels, np.asarray(image))
        assert pixels.flags.writeable and pixels.dtype == np.uint8
        truth = truth_of(split, sample)
        if isinstance(target, int):
            assert target == label == truth == dataset.labels[sample]
        elif isinstance(target, dict):
            usable = [place for place, box in enumerate(truth.boxes) if box[2] > box[0] and box[3] > box[1]]
            np.testing.assert_array_equal(target["boxes"], truth.boxes[usable])
            np.testing.assert_array_equal(target["labels"], truth.labels[usable])
            assert target["masks"].shape == (len(usable), *pixels.shape[:2])
            assert (target["masks"].sum(axis=(1, 2)) == target["area"]).all()
        else:
            np.testing.assert_array_equal(target, truth.astype(np.uint8))  # -1 becomes 255
    assert dataset.key(-1) == split.key(len(split) - 1)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@pytest.mark.parametrize("task", DATASETS)
def test_both_formats_give_the_same_sample(task: str) -> None:
    formats = [open_dataset(DATASETS[task](), format=one) for one in ("webdataset", "ffcv")]  # type: ignore[arg-type]
    for one, other in zip(*formats, strict=True):
        expect_equal(one, other)


def test_an_orientation_is_applied_as_the_manifest_says() -> None:
    """Otherwise this test's images would show nothing."""
    dataset = open_dataset(upright_photos())
    orientations = [dataset.samples.payload(sample).orientation for sample in range(len(dataset))]
    assert sorted(set(orientations)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("task", DATASETS)
def test_webdataset_gives_the_same_samples(task: str) -> None:
    dataset = open_dataset(DATASETS[task](), masks=True)
    pipeline = dataset.as_webdataset(decode="rgb8", fields=("key", "image", "target"))
    found = list(pipeline)
    assert [key for key, *_ in found] == [dataset.key(sample) for sample in range(len(dataset))]
    for (_, *one), other in zip(found, dataset, strict=True):
        expect_equal(one, other)


def test_stock_webdataset_sees_the_bytes_as_they_are_stored() -> None:
    import webdataset

    dataset = open_dataset(upright_photos())
    shards = [str(Path(dataset.path) / shard.file) for shard in dataset.samples.shards]
    stock = list(webdataset.WebDataset(shards, shardshuffle=False))
    ours = list(dataset.as_webdataset(decode=None))
    names = ("jpg", "png", "cls", "__key__")
    assert [{name: one.get(name) for name in names} for one in ours] == [
        {name: one.get(name) for name in names} for one in stock
    ]


def test_shards_are_shared_among_ranks_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(digits())  # five shards
    keys = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        pipeline = dataset.as_webdataset(fields=("key",), shuffle=100)
        keys += [key for (key,) in DataLoader(pipeline, batch_size=None, num_workers=2)]
    assert len(keys) == len(dataset)
    assert set(keys) == {dataset.key(sample) for sample in range(len(dataset))}


def test_shuffling_takes_each_sample_once_in_another_order_each_epoch() -> None:
    dataset = open_dataset(digits())
    stored = [dataset.key(sample) for sample in range(len(dataset))]
    pipeline = dataset.as_webdataset(fields=("key",), shuffle=200, seed=1)
    epochs = [[key for (key,) in pipeline] for _ in range(2)]
    again = [key for (key,) in dataset.as_webdataset(fields=("key",), shuffle=200, seed=1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(stored)
    assert epochs[0] != epochs[1] and stored not in epochs and again == epochs[0]


@pytest.mark.parametrize("task", DATASETS)
def test_torch_items_are_tensors(task: str) -> None:
    dataset = open_dataset(DATASETS[task](), masks=True)
    for (image, target), (pixels, wanted) in zip(dataset.as_torch(), dataset, strict=True):  # type: ignore[call-overload]
        assert image.dtype == torch.uint8
        expect_equal((image.permute(1, 2, 0), target), (pixels, wanted))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_torchvisions_transforms_turn_image_and_target_together(task: str) -> None:
    from torchvision.transforms import v2

    dataset = open_dataset(DATASETS[task](), masks=True)
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToImage()])
    for place, (image, target) in enumerate(DataLoader(dataset.as_torch(transforms=flip), batch_size=None)):
        pixels, wanted = dataset[place]
        np.testing.assert_array_equal(image.permute(1, 2, 0), pixels[:, ::-1])
        if isinstance(wanted, dict):
            left, right = wanted["boxes"][:, 0], wanted["boxes"][:, 2]
            np.testing.assert_allclose(target["boxes"][:, 0], pixels.shape[1] - right)
            np.testing.assert_allclose(target["boxes"][:, 2], pixels.shape[1] - left)
            np.testing.assert_array_equal(target["masks"], wanted["masks"][:, :, ::-1])
        else:
            np.testing.assert_array_equal(target, wanted[:, ::-1])


def brightness(image: Any) -> float:
    return float(np.asarray(image).mean())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_stock_data_loader_reads_it_in_workers(method: str) -> None:
    dataset = open_dataset(upright_photos())
    dataset[0]  # its files are open in this process
    split = dataset.as_torch(transform=brightness)
    loader = DataLoader(split, batch_size=5, num_workers=2, multiprocessing_context=method)
    values, labels = (torch.cat(column) for column in zip(*loader, strict=True))
    assert values.tolist() == [pytest.approx(brightness(pixels)) for pixels, _ in dataset]
    assert labels.tolist() == dataset.labels.tolist()


def test_it_can_be_pickled_open_or_not() -> None:
    dataset = open_dataset(digits(), "val")
    dataset[0], dataset.labels[0]
    found = pickle.loads(pickle.dumps(dataset))
    assert isinstance(found, PreparedDataset) and found.split == "val"
    expect_equal(found[7], dataset[7])
    pipeline = pickle.loads(pickle.dumps(dataset.as_webdataset(decode="rgb8")))
    expect_equal(next(iter(pipeline)), dataset[0])


def test_a_dataset_at_a_url_is_read_in_all_three_ways(tmp_path: Path) -> None:
    dataset = open_dataset(upright_photos())
    with web_server(upright_photos()) as server:
        remote = open_dataset(server.url, cache_dir=tmp_path)
        for one, other in zip(remote, dataset, strict=True):
            expect_equal(one, other)
        for one, other in zip(remote.as_webdataset(decode="rgb8"), dataset, strict=True):
            expect_equal(one, other)


def test_paths_with_characters_of_urls_work(tmp_path: Path) -> None:
    folder = shutil.copytree(upright_photos(), tmp_path / "a#b?c;d")
    assert len(list(open_dataset(folder).as_webdataset(fields=("key",)))) == SAMPLES


def test_a_name_in_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(upright_photos(), tmp_path / "data/photos")
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    assert repr(open_dataset("photos")) == (
        f"<photos/train: 12 images for classification, 2 classes, webdataset shards at {tmp_path}/data/photos>"
    )
    with pytest.raises(DataError, match=r"no dataset fotos: .* \(it holds photos\)"):
        open_dataset("fotos")


def test_damage_is_named(tmp_path: Path) -> None:
    folder = jpegs_and_pngs(tmp_path)
    dataset = open_dataset(folder)
    damage(dataset.samples, 3)
    with pytest.raises(DataError, match=rf"sample '{dataset.key(3)}' .* is damaged"):
        open_dataset(folder)[3]
    dataset[2], dataset[4]
    shard = folder / dataset.samples.shards[0].file
    shard.write_bytes(shard.read_bytes().replace(b"\xff\xd8", b"\xff\xd9"))
    with pytest.raises(DataError, match=rf"{shard.name}: sample '\S+' is damaged: .*data verify"):
        list(open_dataset(folder).as_webdataset())


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no split 'test'; it has train, val"):
        open_dataset(digits(), "test")
    with pytest.raises(DataError, match=r"has no ffcv shards; it has webdataset"):
        open_dataset(digits(), format="ffcv")
    with pytest.raises(DataError, match=r"the job asks for sha256:0000"):
        open_dataset(digits(), digest=f"sha256:{0:064x}")
    with pytest.raises(DataError, match=r"has no \.beton files: prepare it with output\.formats"):
        open_dataset(digits()).as_ffcv_loader(8)
    with pytest.raises(DataError, match=r"images of detection have no label"):
        open_dataset(rectangles()).labels  # noqa: B018
    with pytest.raises(ValueError, match="not both"):
        open_dataset(digits()).as_torch(brightness, lambda image, target: (image, target))
    with pytest.raises(ValueError, match="'label' is none of image, target, key"):
        open_dataset(digits()).as_webdataset(fields=("label",))
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"as_webdataset\(\) needs webdataset .*pip install webdataset"):
        open_dataset(digits()).as_webdataset()
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    with pytest.raises(DataError, match=r"as_ffcv_loader\(\) needs ffcv .*convmlp-platform\[ffcv\]"):
        open_dataset(upright_photos()).as_ffcv_loader(8)


def test_images_are_collated_as_torch_does() -> None:
    images, labels = default_collate([open_dataset(digits()).as_torch()[place] for place in range(4)])
    assert images.shape == (4, 3, 8, 8) and labels.dtype == torch.int64
