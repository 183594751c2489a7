"""A dataset of some of a source's samples."""

from pathlib import Path

import pytest
from prep_helpers import folder_job, make_folder, prepare_folder
from pydantic import ValidationError

from data_prep.dataset.index import read_index
from data_prep.dataset.manifest import DatasetManifest
from data_prep.errors import DataPrepError


def keys_of(manifest: DatasetManifest, folder: Path, split: str) -> set[str]:
    shards = manifest.splits[split].formats["webdataset"]
    return {str(key) for shard in shards for key in read_index(folder / shard.index).keys}


def test_the_first_samples_by_key_and_all_of_a_split_not_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    whole = prepare_folder(source, tmp_path / "whole")
    few = prepare_folder(source, tmp_path / "few", keep={"train": 4})
    train = sorted(keys_of(whole, tmp_path / "whole", "train"))
    assert keys_of(few, tmp_path / "few", "train") == set(train[:4])
    assert keys_of(few, tmp_path / "few", "val") == keys_of(whole, tmp_path / "whole", "val")
    assert few.classes == whole.classes
    assert few.digest != whole.digest


def test_samples_by_key_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    train = sorted(keys_of(prepare_folder(source, tmp_path / "whole"), tmp_path / "whole", "train"))
    wanted = (train[7], train[2])
    named = prepare_folder(source, tmp_path / "named", keep={"train": wanted})
    turned = prepare_folder(source, tmp_path / "turned", keep={"train": wanted[::-1]})
    assert keys_of(named, tmp_path / "named", "train") == set(wanted)
    assert named.digest == turned.digest


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"test": 4}, r"keep\.test: the source has no such split, only train, val"),
        ({"train": ("no-such", "image_1")}, r"keep\.train: \d of the 2 keys .* 11 samples: no-such"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, keep: dict[str, object], says: str) -> None:
    with pytest.raises(DataPrepError, match=says):
        prepare_folder(make_folder(tmp_path / "source"), tmp_path / "out", keep=keep)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("keep", [{"train": 0}, {"train": ()}, {"../x": 4}])
def test_nothing_at_all_is_no_dataset(tmp_path: Path, keep: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        folder_job(tmp_path, tmp_path / "out", keep=keep)


def test_another_choice_is_another_dataset(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    prepare_folder(source, tmp_path / "out", keep={"train": 4})
    prepare_folder(source, tmp_path / "out", keep={"train": 4})
    with pytest.raises(DataPrepError, match="keep is"):
        prepare_folder(source, tmp_path / "out")
