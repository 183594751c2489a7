"""A stock `ffcv.Loader` over our .beton files: the same samples, pixels and targets as by our reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotated import rectangles, stripes
from numpy.typing import NDArray
from PIL import Image
from prepared import digits
from upright_photos import SAMPLES, SIDE, upright_photos

from convmlp_platform import open_dataset
from convmlp_platform.errors import DataError
from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset

pytestmark = pytest.mark.ffcv

FAST_DCT = 8
"""Levels by which libjpeg-turbo's fast transform, which FFCV asks for, differs on smooth images."""


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed (pip install 'convmlp-platform[ffcv]')")


def batches(loader: Any) -> tuple[list[Any], list[Any]]:
    """Images and targets of all batches, one by one; FFCV's memory is used again."""
    images, targets = [], []
    for pixels, truth in loader:
        images += list(pixels.clone())
        targets += list(truth.clone() if isinstance(truth, torch.Tensor) else truth)
    return images, targets


def pixels_of(image: torch.Tensor) -> NDArray[np.int64]:
    return image.permute(1, 2, 0).numpy().astype(np.int64)


def test_classification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three shards, and images to be turned: one file is written, upright; the second time it is found."""
    from ffcv.loader import Loader

    dataset = open_dataset(upright_photos(), cache_dir=tmp_path)
    loader = dataset.as_ffcv_loader(5, normalize=False, num_workers=1)
    assert isinstance(loader, Loader)
    (file,) = (tmp_path / "ffcv").glob("photos-train-*.beton")
    told = capsys.readouterr().out
    assert "12 images of photos/train as one file" in told and "of them turned upright" in told
    images, labels = batches(loader)
    assert [int(label) for label in labels] == dataset.labels.tolist()
    turned = 0
    for sample, (image, (pixels, _)) in enumerate(zip(images, dataset, strict=True)):
        payload = dataset.samples.payload(sample)
        stored_as_pixels = not bytes(payload.content).startswith(b"\xff\xd8") or payload.orientation != 1
        turned += payload.orientation != 1
        np.testing.assert_allclose(pixels_of(image), pixels, atol=0 if stored_as_pixels else FAST_DCT)
    assert turned >= SAMPLES // 2
    before = file.stat().st_mtime_ns
    dataset.as_ffcv_loader(SAMPLES, num_workers=1)
    assert file.stat().st_mtime_ns == before and capsys.readouterr().out == ""


@pytest.mark.slow
def test_images_are_normalised_as_they_are_read(tmp_path: Path) -> None:
    dataset = open_dataset(upright_photos(), cache_dir=tmp_path)
    images, _ = batches(dataset.as_ffcv_loader(5, normalize=False, num_workers=1))
    normal, _ = batches(dataset.as_ffcv_loader(SAMPLES, num_workers=1))
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (dataset.manifest.mean, dataset.manifest.std)
    )
    for image, plain in zip(normal, images, strict=True):
        torch.testing.assert_close(image, (plain / 255 - mean) / std, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_training_in_classification_shuffles_and_cuts(tmp_path: Path) -> None:
    dataset = open_dataset(upright_photos(), cache_dir=tmp_path)
    loader = dataset.as_ffcv_loader(5, image_size=(16, 24), train=True, seed=1, num_workers=1)
    epochs = [batches(loader) for _ in range(2)]
    assert len(epochs[0][0]) == 10  # the last two fill no batch
    assert epochs[0][0][0].shape == (3, 16, 24)
    assert [int(one) for one in epochs[0][1]] != [int(one) for one in epochs[1][1]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using a pytorch transform on the CPU")
def test_images_are_normalised_on_the_device_they_travel_to(tmp_path: Path) -> None:
    dataset = open_dataset(upright_photos(), cache_dir=tmp_path)
    ours, _ = batches(dataset.as_ffcv_loader(SAMPLES, num_workers=1))
    there, _ = batches(dataset.as_ffcv_loader(SAMPLES, num_workers=1, device="cpu"))
    for one, other in zip(there, ours, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def as_ffcv_scales(values: NDArray[Any], size: tuple[int, int], how: Image.Resampling) -> NDArray[np.int64]:
    return np.asarray(Image.fromarray(values).resize(size[::-1], how), np.int64)


@pytest.mark.slow
def test_detection(tmp_path: Path) -> None:
    dataset = open_dataset(rectangles(), cache_dir=tmp_path, masks=True)
    height, width = 35, 45
    loader = dataset.as_ffcv_loader(4, image_size=(height, width), normalize=False, num_workers=1)
    images, targets = batches(loader)
    assert len(images) == len(targets) == len(dataset)
    for image, target, (pixels, wanted) in zip(images, targets, dataset, strict=True):
        expected = as_ffcv_scales(pixels, (height, width), Image.Resampling.BOX)
        assert np.abs(pixels_of(image) - expected).mean() < 3
        assert isinstance(wanted, dict) and target.keys() == wanted.keys()
        scale = [width / pixels.shape[1], height / pixels.shape[0]] * 2
        np.testing.assert_allclose(target["boxes"], wanted["boxes"] * np.float32(scale), rtol=1e-5)
        for name in ("labels", "iscrowd", "image_id"):
            np.testing.assert_array_equal(np.asarray(target[name]), wanted[name])
        assert target["masks"].shape == (len(wanted["labels"]), height, width)


@pytest.mark.slow
def test_segmentation(tmp_path: Path) -> None:
    dataset = open_dataset(stripes(), cache_dir=tmp_path)
    loader = dataset.as_ffcv_loader(4, image_size=(70, 96), normalize=False, num_workers=1)
    images, maps = batches(loader)
    for image, labels, (pixels, wanted) in zip(images, maps, dataset, strict=True):
        assert isinstance(wanted, np.ndarray) and labels.dtype == torch.int64
        if pixels.shape[:2] == (70, 96):  # one of them has the size
            np.testing.assert_array_equal(pixels_of(image), pixels)
            np.testing.assert_array_equal(labels.numpy(), wanted)
        np.testing.assert_array_equal(
            labels.numpy(), as_ffcv_scales(wanted, (70, 96), Image.Resampling.NEAREST)
        )


def test_a_damaged_annotation_is_said_and_ends_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    from convmlp_platform.python_api.datasets.ffcv_targets import DecodeAnnotations

    decoder = DecodeAnnotations("segmentation", None, (4, 4), masks=False)
    decoder.metadata = np.array([(0, 3)], [("ptr", np.uint64), ("size", np.uint64)])
    content, samples = np.frombuffer(b"PNG..", np.uint8)[None], np.zeros(1, np.uint64)
    assert decoder.generate_code()(content, None, samples) is None
    assert "error: an annotation in the .beton file is damaged: the mask" in capsys.readouterr().err


def test_one_upright_shard_is_read_where_it_lies(tmp_path: Path) -> None:
    from data_prep.config import DigitsSource, OutputConfig, PrepareConfig
    from data_prep.prepare import prepare

    output = OutputConfig(path=tmp_path / "digits", formats=("ffcv",))
    prepare(PrepareConfig(source=DigitsSource(), output=output), progress=lambda _line: None)
    dataset = open_dataset(tmp_path / "digits", "val", cache_dir=tmp_path / "cache")
    images, labels = batches(dataset.as_ffcv_loader(100, normalize=False, num_workers=1))
    assert not (tmp_path / "cache").exists()
    assert [int(one) for one in labels] == dataset.labels.tolist()
    for image, (pixels, _) in zip(images, dataset, strict=True):
        np.testing.assert_array_equal(pixels_of(image), pixels)


def test_a_damaged_sample_is_not_copied(tmp_path: Path) -> None:
    import shutil

    from reader_helpers import damage

    folder = shutil.copytree(digits("webdataset", "ffcv"), tmp_path / "digits")
    dataset: PreparedDataset = open_dataset(folder, "val", cache_dir=tmp_path / "cache")
    damage(dataset.in_format("ffcv"), 3)
    with pytest.raises(DataError, match=rf"sample '{dataset.key(3)}' .* is damaged"):
        dataset.as_ffcv_loader(8)
    assert list((tmp_path / "cache/ffcv").iterdir()) == []


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"image_size: the images of data/train have 70 to 70 rows and 90 to 120 col"
    ):
        open_dataset(rectangles(), cache_dir=tmp_path).as_ffcv_loader(2)
    assert SIDE == 48
