"""The same laws on real ImageNet files, a few of them greyscale, many with ICC profiles and EXIF."""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from prep_helpers import prepare_folder

from data_prep.dataset.index import ENCODED, read_index
from data_prep.verify import verify

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def imagenet_sample() -> Path:
    folder = os.environ.get("CONVMLP_TEST_DATA")
    if not folder or not (Path(folder) / "imagenet_sample").is_dir():
        pytest.skip("CONVMLP_TEST_DATA does not name a folder that holds imagenet_sample/")
    return Path(folder) / "imagenet_sample"


def test_imagenet_files_pass_through_both_formats(imagenet_sample: Path, tmp_path: Path) -> None:
    manifest = prepare_folder(imagenet_sample, tmp_path / "out", val_fraction=0.1, samples_per_shard=150)
    report = verify(tmp_path / "out")
    assert report.ok, report.problems
    with (imagenet_sample / "manifest.csv").open() as file:
        published = {row["path"].rsplit(".", 1)[0]: row for row in csv.DictReader(file)}
    assert sum(split.num_samples for split in manifest.splits.values()) == len(published)
    assert manifest.num_classes == len(published)
    for split in manifest.splits.values():
        for shard in (shard for shards in split.formats.values() for shard in shards):
            index = read_index(tmp_path / "out" / shard.index)
            content = (tmp_path / "out" / shard.file).read_bytes()
            for row in map(index.row, range(len(index))):
                expected = published[unquote(row.key)]
                payload = content[row.offset : row.offset + row.length]
                assert row.encoding == ENCODED
                assert hashlib.sha256(payload).hexdigest() == expected["sha256"]
                assert (row.width, row.height) == (int(expected["width"]), int(expected["height"]))
                assert manifest.classes[row.label] == expected["wnid"]
    # ImageNet's well-known statistics, within what 373 images allow
    assert manifest.mean == pytest.approx((0.485, 0.456, 0.406), abs=0.03)
    assert manifest.std == pytest.approx((0.275, 0.268, 0.282), abs=0.03)
