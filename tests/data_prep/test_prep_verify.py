"""Verification finds what was changed on disk, in both formats, and lists all of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prep_helpers import make_folder, prepare_folder

from data_prep.__main__ import main
from data_prep.dataset.index import read_index, write_index
from data_prep.dataset.manifest import DatasetManifest, load_manifest, write_manifest
from data_prep.storage.files import sha256_file
from data_prep.verify import verify


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    prepare_folder(make_folder(folder / "source"), folder / "out")
    return folder / "out"


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "out"))


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_good_dataset(dataset: Path) -> None:
    report = verify(dataset)
    assert report.ok, report.problems
    assert (report.num_shards, report.num_payloads) == (10, 32)
    assert report.manifest == load_manifest(dataset)
    assert verify(dataset / "manifest.json", deep=False).num_payloads == 0


@pytest.mark.parametrize("format_name", ["webdataset", "ffcv"])
def test_a_flipped_payload_bit_names_the_sample(dataset: Path, format_name: str) -> None:
    shard = load_manifest(dataset).splits["train"].formats[format_name][1]
    row = read_index(dataset / shard.index).row(2)
    flip(dataset / shard.file, row.offset + row.length // 2)
    problems = verify(dataset).problems
    assert len(problems) == 2
    assert problems[0] == f"{shard.file}: SHA-256 differs from the manifest's"
    assert f"sample {row.key}" in problems[1]
    assert verify(dataset, deep=False).ok


@pytest.mark.parametrize(
    ("format_name", "offset"),
    [
        ("webdataset", 0),  # a member's name
        ("ffcv", 0),  # the version
        ("ffcv", 24 + 2 * 1041 + 1),  # the first sample's width
        ("ffcv", 24 + 2 * 1041 + 16),  # its label
        ("ffcv", -1),  # the allocation table
    ],
)
def test_flipped_bits_outside_payloads(dataset: Path, format_name: str, offset: int) -> None:
    shard = load_manifest(dataset).splits["val"].formats[format_name][0]
    flip(dataset / shard.file, offset)
    problems = verify(dataset).problems
    assert len(problems) >= 2
    assert all(shard.file in problem for problem in problems)
    assert any("disagrees" in problem or "structure" in problem for problem in problems)


def test_every_problem_is_listed(dataset: Path) -> None:
    (dataset / "webdataset" / "train-000000.tar").unlink()
    (dataset / "ffcv" / "val-000000.index.arrow").unlink()
    beton = dataset / "ffcv" / "train-000002.beton"
    beton.write_bytes(beton.read_bytes()[:-7])
    text = "\n".join(verify(dataset).problems)
    assert "webdataset/train-000000.tar: can't be read" in text
    assert "ffcv/val-000000.index.arrow is missing" in text
    assert "ffcv/train-000002.beton: has " in text
    assert "ffcv/train-000002.beton: its structure is damaged" in text


def relabel_first_sample(dataset: Path) -> Path:
    path = dataset / "ffcv" / "train-000000.index.arrow"
    index = read_index(path)
    rows = [index.row(i) for i in range(len(index))]
    write_index(path, [rows[0]._replace(label=(rows[0].label + 1) % 3), *rows[1:]])
    return path


def test_an_index_that_was_swapped_is_not_used(dataset: Path) -> None:
    relabel_first_sample(dataset)
    assert verify(dataset).problems == ["ffcv/train-000000.index.arrow: SHA-256 differs from the manifest's"]


def test_an_index_that_was_swapped_with_its_hash_breaks_agreement_and_digest(dataset: Path) -> None:
    path = relabel_first_sample(dataset)
    fields = load_manifest(dataset).model_dump(mode="json")
    fields["splits"]["train"]["formats"]["ffcv"][0]["index_sha256"] = sha256_file(path)
    write_manifest(DatasetManifest.model_validate(fields | {"checksum": ""}), dataset)
    text = "\n".join(verify(dataset).problems)
    assert "hold different samples" in text
    assert "ffcv: the dataset digest is sha256:" in text
    assert "webdataset: the dataset digest" not in text
    assert "disagrees with the index in label" in text


def test_changed_class_names_break_the_digest(dataset: Path) -> None:
    manifest = load_manifest(dataset)
    write_manifest(manifest.model_copy(update={"classes": ["a", "b", "c"]}), dataset)
    assert any("the dataset digest is" in problem for problem in verify(dataset, deep=False).problems)


def test_command_line(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(dataset)]) == 0
    assert "32 payloads are intact" in capsys.readouterr().out
    assert main(["show-manifest", str(dataset)]) == 0
    assert '"schema_version": 2' in capsys.readouterr().out
    (dataset / "ffcv" / "val-000001.beton").unlink()
    assert main(["verify", "--quick", str(dataset)]) == 2
    assert "val-000001.beton" in capsys.readouterr().err
    assert main(["verify", str(dataset / "nowhere")]) == 2
    assert main(["show-manifest", str(dataset / "nowhere")]) == 2
    assert "not prepared" in capsys.readouterr().err
