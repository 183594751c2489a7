"""The two formats of a dataset are one dataset: the same samples in the same order, the same payloads and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_harness import FirstPixel
from PIL import Image

from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.reading.loader import TrainLoader
from convmlp_platform.data.sample_order import SampleOrder
from data_prep.config import ImageFolderSource, OutputConfig, PrepareConfig
from data_prep.dataset.index import ENCODED
from data_prep.prepare import prepare

NUM_IMAGES = 60


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardedSplit, ShardedSplit]:
    """60 JPEGs of all sizes, some grey, and some PNGs, in both formats, seven to a shard."""
    root = tmp_path_factory.mktemp("formats")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        height, width = rng.integers(8, 70, 2)
        pixels = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        folder = root / "images" / "train" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = "png" if number % 10 == 3 else "jpg"
        pixels.convert("L" if number % 7 == 0 else "RGB").save(folder / f"{number}.{suffix}")
    source = ImageFolderSource(path=root / "images", splits={"train": "train"})
    output = OutputConfig(path=root / "set", formats=("webdataset", "ffcv"), samples_per_shard=7)
    manifest = prepare(PrepareConfig(source=source, output=output), progress=lambda _line: None)
    assert manifest == open_manifest(str(root / "set"))
    one, other = (ShardedSplit(root / "set", manifest, "train", name) for name in ("webdataset", "ffcv"))
    return one, other


@given(st.data())
@settings(max_examples=60)
def test_both_formats_give_the_same_samples_payloads_and_pixels(
    formats: tuple[ShardedSplit, ShardedSplit], data: st.DataObject
) -> None:
    """For any order, batch, world size and position."""
    micro, micros = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
    streams = data.draw(st.sampled_from([n for n in range(1, 41) if micro * micros % n == 0]))
    world_size = data.draw(st.integers(1, micros))
    block, window = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 70))
    order = SampleOrder(NUM_IMAGES, streams, data.draw(st.integers(0, 1 << 40)), block, window)
    rank, step = data.draw(st.integers(0, world_size - 1)), data.draw(st.integers(0, 1000))
    loaders = [
        TrainLoader(split, FirstPixel(), order, micro * micros, micro, rank, world_size, 0)
        for split in formats
    ]
    ours, theirs = (next(loader.steps(step, step + 1)) for loader in loaders)
    for one, other in zip(ours, theirs, strict=True):
        assert one.sample_ids.tolist() == other.sample_ids.tolist()
        assert one.epochs.tolist() == other.epochs.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        for sample, first, second in zip(
            one.sample_ids.tolist(), one.checksums.tolist(), other.checksums.tolist(), strict=True
        ):
            assert_same_payload(formats, sample, first == second)


def assert_same_payload(formats: tuple[ShardedSplit, ShardedSplit], sample: int, same_checksum: bool) -> None:
    one, other = (split.payload(sample) for split in formats)
    passed_through = one.encoding == other.encoding == ENCODED
    assert same_checksum == passed_through
    assert formats[0].key(sample) == formats[1].key(sample)
    assert np.array_equal(one.pixels(), other.pixels())
    if passed_through:
        assert bytes(one.content) == bytes(other.content)


def test_most_images_pass_through(formats: tuple[ShardedSplit, ShardedSplit]) -> None:
    """Colour JPEGs do in both formats; FFCV keeps no PNG, and decodes grey JPEGs its own way."""
    encodings = [[split.payload(sample).encoding for sample in range(NUM_IMAGES)] for split in formats]
    assert encodings[0] == [ENCODED] * NUM_IMAGES
    assert encodings[1].count(ENCODED) >= NUM_IMAGES * 0.7
