"""The shard contract: written and read back, and every way of being wrong is one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.dataset.manifest import (
    SCHEMA_VERSION,
    DatasetManifest,
    _checksum,
    _render,
    load_manifest,
    parse_manifest,
    write_manifest,
)
from data_prep.errors import DataPrepError


def shard(**changes: Any) -> dict[str, Any]:
    return {
        "file": "webdataset/train-000000.tar",
        "index": "webdataset/train-000000.index.arrow",
        "num_samples": 3,
        "bytes": 10240,
        "sha256": "0" * 64,
        "index_sha256": "1" * 64,
    } | changes


def content(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": "tiny",
        "classes": ["a", "b"],
        "splits": {"train": {"num_samples": 3, "formats": {"webdataset": [shard()]}}},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "source": {"kind": "digits"},
        "preprocessing": {},
        "digest": "sha256:" + "2" * 64,
    } | changes


def save(folder: Path, **changes: Any) -> None:
    """A manifest with its right checksum, whatever it says."""
    fields = content(**changes)
    (folder / "manifest.json").write_bytes(_render(fields | {"checksum": _checksum(fields)}))


def test_round_trip_by_folder_and_by_file(tmp_path: Path) -> None:
    manifest = DatasetManifest.model_validate(content())
    assert write_manifest(manifest, tmp_path) == tmp_path / "manifest.json"
    assert load_manifest(tmp_path) == load_manifest(str(tmp_path / "manifest.json")) == manifest
    assert manifest.task == "classification"
    assert manifest.num_classes == 2
    assert manifest.formats == ["webdataset"]
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_missing_names_the_job_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="not prepared") as raised:
        load_manifest(tmp_path / "absent")
    assert "kind: prepare" in str(raised.value)
    assert str(tmp_path / "absent") in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "na', "not valid JSON"),
        ("\xff\xfe", "not valid JSON"),
        ("[]", "is damaged: the whole: input should be an object"),
        ('{"schema_version": 2, "mean": [1e999]}', "not valid JSON: a number is too large"),
        ('{"schema_version": true}', "no integer schema_version"),
        ('{"name": "x"}', "no integer schema_version"),
        (json.dumps(content(schema_version=3)), "schema_version 3, this release reads 2: upgrade"),
        (json.dumps(content(schema_version=1)), "schema_version 1, .* prepare the dataset again"),
        (json.dumps(content()), "is damaged: its checksum"),
    ],
)
def test_broken_content(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin1"))
    with pytest.raises(DataPrepError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize("change", [{"digest": "md5:1"}, {"extra": 1}, {"classes": "a"}])
def test_broken_contract_under_a_right_checksum(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path, **change)
    with pytest.raises(DataPrepError, match=f"breaks the manifest contract: {next(iter(change))}"):
        load_manifest(tmp_path)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Also one that changes a space, or the letter case of an escape, and so leaves the JSON's meaning."""
    write_manifest(DatasetManifest.model_validate(content(name="größe")), tmp_path)
    good = (tmp_path / "manifest.json").read_bytes()
    for position in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            with pytest.raises(DataPrepError):
                parse_manifest(bytes(damaged), "manifest.json")


@pytest.mark.parametrize("file", ["/etc/passwd", "../other/a.tar", "webdataset/../../a.tar", ""])
def test_shards_stay_in_the_folder(tmp_path: Path, file: str) -> None:
    splits = {"train": {"num_samples": 3, "formats": {"webdataset": [shard(file=file)]}}}
    save(tmp_path, splits=splits)
    with pytest.raises(DataPrepError, match=r"splits\.train\.formats\.webdataset\.0\.file"):
        load_manifest(tmp_path)


def test_formats_must_agree(tmp_path: Path) -> None:
    halves = [shard(num_samples=1), shard(num_samples=2)]
    splits = {"train": {"num_samples": 3, "formats": {"webdataset": [shard()], "ffcv": halves}}}
    save(tmp_path, splits=splits)
    with pytest.raises(DataPrepError, match="different places"):
        load_manifest(tmp_path)
    splits = {"train": {"num_samples": 4, "formats": {"webdataset": [shard()]}}}
    save(tmp_path, splits=splits)
    with pytest.raises(DataPrepError, match="hold 3 samples, the split says 4"):
        load_manifest(tmp_path)


def test_manifest_imports_nothing_heavy_and_nothing_needs_torch() -> None:
    code = (
        "import sys, data_prep.dataset.manifest\n"
        "assert not {'numpy', 'pyarrow', 'torch'} & set(sys.modules)\n"
        "import data_prep.prepare, data_prep.verify, data_prep.__main__\n"
        "assert not {'torch', 'ffcv', 'ray', 'sklearn', 'webdataset'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
