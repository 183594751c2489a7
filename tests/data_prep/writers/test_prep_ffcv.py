"""`.beton` files are plain FFCV: its own types, its own Reader and Loader, the right pixels and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prep_helpers import image_bytes, make_folder, prepare_folder, smooth_image

from data_prep.dataset.index import ENCODED, RAW_RGB, read_index
from data_prep.dataset.manifest import Task
from data_prep.writers import ffcv_writer as beton

pytestmark = pytest.mark.ffcv


@pytest.fixture(scope="module", autouse=True)
def _ffcv() -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed (pip install 'convmlp-platform[ffcv]')")


def test_our_types_are_those_of_ffcv() -> None:
    from ffcv import types
    from ffcv.fields import BytesField, IntField, JSONField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert types.CURRENT_VERSION == beton.VERSION
    assert types.HeaderType == beton.HEADER_TYPE
    assert types.FieldDescType == beton.FIELD_TYPE
    assert types.ALLOC_TABLE_TYPE == beton.ALLOCATION_TYPE
    fields: dict[Task, list[type]] = {
        "classification": [RGBImageField, IntField],
        "detection": [RGBImageField, IntField, JSONField],
        "segmentation": [RGBImageField, IntField, BytesField],
    }
    for task, classes in fields.items():
        assert types.get_metadata_type([field() for field in classes]) == beton.sample_type(task)
        assert [types.TYPE_ID_HANDLER[number] for _, number in beton.FIELDS[task]] == classes
    assert beton.MODE_OF_ENCODING[ENCODED] == IMAGE_MODES["jpg"]
    assert beton.MODE_OF_ENCODING[RAW_RGB] == IMAGE_MODES["raw"]


def load_all(file: Path, *, os_cache: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, height, width, 3) and labels (n,) through the stock loader."""
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    loader = Loader(
        str(file),
        batch_size=4,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        os_cache=os_cache,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    batches = [(np.array(images), np.array(labels)) for images, labels in loader]
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels).ravel()


@pytest.mark.parametrize(
    "os_cache",
    [pytest.param(True, id="mapped", marks=pytest.mark.slow), pytest.param(False, id="page by page")],
)
def test_stock_loader_reads_pixels_and_labels(tmp_path: Path, os_cache: bool) -> None:
    source = make_folder(tmp_path / "source", train=23)
    manifest = prepare_folder(source, tmp_path / "out", samples_per_shard=100)
    (shard,) = manifest.splits["train"].formats["ffcv"]
    index = read_index(tmp_path / "out" / shard.index)
    images, labels = load_all(tmp_path / "out" / shard.file, os_cache=os_cache)
    np.testing.assert_array_equal(labels, index.label)
    files = {f"{file.parent.name}/{file.stem}": file for file in (source / "train").rglob("*.*")}
    for i, image in enumerate(images):
        original = np.asarray(Image.open(files[index.key(i)]).convert("RGB"))
        # FFCV asks libjpeg-turbo for its fast transform and upsampling: a few levels on smooth images
        np.testing.assert_allclose(image.astype(int), original.astype(int), atol=8)


@pytest.mark.slow
def test_stock_loader_reads_several_pages(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(5):
        smooth_image(i, (1000, 900)).save(folder / f"{i}.bmp")
    manifest = prepare_folder(
        tmp_path / "source", tmp_path / "out", samples_per_shard=100, splits={"train": "train"}
    )
    (shard,) = manifest.splits["train"].formats["ffcv"]
    index = read_index(tmp_path / "out" / shard.index)
    images, _ = load_all(tmp_path / "out" / shard.file, os_cache=False)
    assert shard.bytes > 4 * (1 << 22)  # one image of 2.7 MB to a page of 4 MiB
    for i, image in enumerate(images):
        original = np.asarray(Image.open(tmp_path / "source" / "train" / f"{index.key(i)}.bmp"))
        np.testing.assert_array_equal(image, original)


def test_pages_grow_with_the_largest_payload_and_none_crosses_a_page(tmp_path: Path) -> None:
    from ffcv.reader import Reader

    folder = tmp_path / "source" / "train" / "a"
    folder.mkdir(parents=True)
    sizes = [(700, 700), (1200, 900), (16, 16), (1500, 1600), (640, 640), (800, 700), (8, 8), (900, 800)]
    for i, size in enumerate(sizes):
        (folder / f"{i}.bmp").write_bytes(image_bytes(smooth_image(i, size), "BMP"))
    manifest = prepare_folder(
        tmp_path / "source", tmp_path / "out", samples_per_shard=100, splits={"train": "train"}
    )
    (shard,) = manifest.splits["train"].formats["ffcv"]
    reader = Reader(str(tmp_path / "out" / shard.file))
    assert reader.num_samples == len(sizes)
    assert reader.page_size == 1 << 23
    ends = reader.alloc_table["ptr"] + reader.alloc_table["size"]
    assert (reader.alloc_table["ptr"] // reader.page_size == (ends - 1) // reader.page_size).all()
    samples = beton.read_beton(tmp_path / "out" / shard.file)
    index = read_index(tmp_path / "out" / shard.index)
    np.testing.assert_array_equal(samples["offset"], index.offset)
    np.testing.assert_array_equal(samples["length"], index.height.astype(int) * index.width * 3)
