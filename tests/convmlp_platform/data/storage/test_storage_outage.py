"""A storage that is away is no damage and no mistake of the user's, whichever process meets it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from reader_helpers import damage, loader, open_split, photos
from s3_server import forget_filesystems
from web_server import web_server

from convmlp_platform.config.sections.resilience import RestartsSection
from convmlp_platform.data.dataset.damage import Quarantine
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.storage import open_storage
from convmlp_platform.errors import PlatformError, RemoteError, StorageUnreachable
from convmlp_platform.launch.supervisor.restarts import Budgets
from convmlp_platform.launch.supervisor.verdict import verdict
from convmlp_platform.launch.workers.training_process import failed
from convmlp_platform.launch.workers.worker_report import Ending
from data_prep.storage.retry import Patience


def judged(error: BaseException) -> tuple[str, bool]:
    """The supervisor's verdict on a rank that ends with this error, and whether the run is started again."""
    facts = {name: value for name, value in failed(error).items() if name != "kind"}
    found = verdict([Ending(0, "node-7", "error", 1.0, "data", 8, code=1, **facts)])
    return found.cause, Budgets(RestartsSection()).decide(found.cause, 0.0, headline=found.headline).restart


def everything(source: ShardedSplit) -> Quarantine:
    return Quarantine(len(source), 1.0, source.folder, tell=lambda _line: None)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_outage_that_outlasts_patience_restarts_the_run(tmp_path: Path, num_workers: int) -> None:
    folder = photos(tmp_path)
    with web_server(folder) as web:
        manifest = open_manifest(web.url)
        options = {"cache": CacheOptions(tmp_path / "cache", 1 << 30), "patience": Patience(total=0.2)}
        storage = open_storage(web.url, manifest, "train", "webdataset", block_size=4, **options)  # type: ignore[arg-type]
        source = ShardedSplit(web.url, manifest, "train", "webdataset", storage=storage)
    forget_filesystems()  # and with them connections that the server still answers
    given = everything(source)
    with pytest.raises(StorageUnreachable, match=r"gave up after \d+ tries") as raised:
        next(loader(source, num_workers=num_workers, quarantine=given).steps(0, 3))
    assert judged(raised.value) == ("storage", True)
    assert not given.left_out


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("number", "quarantined", "cause"),
    [
        (errno.EIO, False, "storage"),
        (errno.ESTALE, False, "storage"),
        (errno.ESTALE, True, "storage"),
        (errno.ENOTCONN, True, "storage"),
        (errno.EIO, True, "storage"),  # all of a micro-batch: no sector, the disk
    ],
)
def test_a_file_system_that_fails_restarts_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
    number: int,
    quarantined: bool,
    cause: str,
) -> None:
    source = open_split(photos(tmp_path))

    def fail(*_arguments: Any) -> bytes:
        raise OSError(number, os.strerror(number))

    given = everything(source) if quarantined else None
    with pytest.raises(PlatformError, match=os.strerror(number)) as raised, monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail)
        next(loader(source, num_workers=num_workers, quarantine=given).steps(0, 3))
    assert judged(raised.value) == (cause, True)
    assert given is None or not given.left_out


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damage_missing_files_and_refused_rights_are_the_users(tmp_path: Path, num_workers: int) -> None:
    folder = photos(tmp_path)
    source = open_split(folder)
    for sample in range(len(source)):
        damage(source, sample)
    with pytest.raises(PlatformError, match="is damaged") as raised:
        next(loader(source, num_workers=num_workers).steps(0, 3))
    assert judged(raised.value) == ("data", False)
    for shard in source.shards:
        (folder / shard.file).unlink()
    with pytest.raises(PlatformError, match="No such file") as raised:
        next(loader(open_split(folder), num_workers=num_workers).steps(0, 3))
    assert judged(raised.value) == ("data", False)


def test_a_bug_in_a_reader_process_stays_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: Any) -> bytes:
        raise KeyError("connection reset by nccl_blocks")

    with pytest.raises(RemoteError, match="in another process") as raised, monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail)
        next(loader(open_split(photos(tmp_path)), num_workers=1).steps(0, 3))
    assert judged(raised.value)[0] == "code"
    assert failed(raised.value)["headline"] == "KeyError: 'connection reset by nccl_blocks'"
    assert "in fail" in failed(raised.value)["traceback"]


def test_a_full_cache_disk_damages_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photos(tmp_path)
    with web_server(folder) as web:
        manifest = open_manifest(web.url)
        cache = CacheOptions(tmp_path / "cache", 1 << 30)
        storage = open_storage(web.url, manifest, "train", "webdataset", cache=cache, block_size=4)
        source = ShardedSplit(web.url, manifest, "train", "webdataset", storage=storage)
        given = everything(source)

        def full(*_arguments: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        full_disk = pytest.raises(StorageUnreachable, match=r"data\.cache_dir .* the disk is full")
        with full_disk as raised, monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", full)
            next(loader(source, quarantine=given).steps(0, 3))
    assert judged(raised.value) == ("storage", True)
    assert not given.left_out
