"""Datasets on a real S3 server (moto's) and plain HTTP: the right bytes, each fetched once, through every fault."""

from __future__ import annotations

import logging
import multiprocessing
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import digits
from s3_server import BUCKET, S3Proxy, s3_server
from web_server import web_server

from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.data.storage.block_cache import CacheOptions
from convmlp_platform.data.storage.local import LocalStorage
from convmlp_platform.data.storage.remote import RemoteStorage
from convmlp_platform.data.storage.storage import (
    check_remote_shards,
    open_storage,
    shards_of,
    warn_if_too_small,
)
from convmlp_platform.errors import DataError, StorageUnreachable
from data_prep.copy_dataset import copy_dataset
from data_prep.storage.remote_files import open_filesystem
from data_prep.storage.retry import Patience

URL = f"s3://{BUCKET}/digits"
HASTE = Patience(total=1.0, first_pause=0.01, longest_pause=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Proxy]:
    with s3_server() as proxy:
        copy_dataset(str(digits("webdataset", "ffcv")), URL, progress=lambda _line: None)
        yield proxy


@pytest.fixture
def s3(server: S3Proxy) -> Iterator[S3Proxy]:
    server.reset()
    yield server
    server.reset()


def remote(cache: Path, format: str = "webdataset", url: str = URL, limit: int = 1 << 30) -> RemoteStorage:
    manifest = open_manifest(url)
    storage = open_storage(url, manifest, "train", format, cache=CacheOptions(cache, limit), patience=HASTE)
    assert isinstance(storage, RemoteStorage)
    return storage


def local(format: str = "webdataset") -> LocalStorage:
    folder = digits("webdataset", "ffcv")
    storage = open_storage(folder, open_manifest(str(folder)), "train", format)
    assert isinstance(storage, LocalStorage)
    return storage


def first_payload(storage: RemoteStorage | LocalStorage, number: int = 0) -> tuple[int, int, int]:
    index = storage.index(number)
    return number, int(index.offset[0]), int(index.length[0])


@pytest.mark.parametrize("format", ["webdataset", "ffcv"])
def test_every_sample_is_what_the_folder_holds(s3: S3Proxy, tmp_path: Path, format: str) -> None:
    folder = digits("webdataset", "ffcv")
    manifest = open_manifest(URL)
    assert manifest == open_manifest(str(folder))
    ours = ShardedSplit(URL, manifest, "train", format, storage=remote(tmp_path, format))
    theirs = ShardedSplit(folder, manifest, "train", format)
    s3.reset()
    for sample in range(len(theirs)):
        assert ours.payload(sample) == theirs.payload(sample)
    shards = manifest.splits["train"].formats[format]
    assert len({place for place in s3.requests if "index" not in place[0]}) == len(s3.requests) - len(shards)
    assert s3.body_bytes <= sum(shard.bytes + (folder / shard.index).stat().st_size for shard in shards)


def test_what_is_cached_is_not_asked_for_again(s3: S3Proxy, tmp_path: Path) -> None:
    place = first_payload(remote(tmp_path))
    content = remote(tmp_path).read(*place)
    another_process = remote(tmp_path)
    s3.reset()
    assert another_process.read(*place) == content == local().read(*place)
    assert s3.requests == []


@given(data=st.data(), block=st.integers(1, 700))
@settings(max_examples=25)
def test_any_bytes_are_right_for_any_block_size(server: S3Proxy, data: st.DataObject, block: int) -> None:
    manifest, plain = open_manifest(str(digits("webdataset", "ffcv"))), local()
    cache = Path(digits("webdataset", "ffcv")).parent / f"cache-{block}"
    storage = open_storage(
        URL, manifest, "train", "webdataset", cache=CacheOptions(cache, 1 << 28), block_size=block
    )
    number = data.draw(st.integers(0, 4))
    size = shards_of(manifest, "train", "webdataset")[number].bytes
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, min(3000, size - offset)))
    assert storage.read(number, offset, length) == plain.read(number, offset, length)


@pytest.mark.parametrize("damage", [b"", b"\xff", b"everything else"], ids=["emptied", "flipped", "cut"])
def test_a_damaged_cache_file_heals(s3: S3Proxy, tmp_path: Path, damage: bytes) -> None:
    manifest = open_manifest(URL)
    remote(tmp_path).read(*first_payload(remote(tmp_path)))
    (piece,) = tmp_path.glob("convmlp-blocks/[!i]*-*")
    content = bytearray(piece.read_bytes())
    piece.write_bytes(damage if len(damage) != 1 else bytes(byte ^ 0xFF for byte in content))
    split = ShardedSplit(URL, manifest, "train", "webdataset", storage=remote(tmp_path))
    with_folder = ShardedSplit(digits("webdataset", "ffcv"), manifest, "train", "webdataset")
    assert split.payload(0) == with_folder.payload(0)
    assert piece.read_bytes() == content


def test_a_cache_file_cut_while_it_is_open_heals(s3: S3Proxy, tmp_path: Path) -> None:
    storage = remote(tmp_path)
    place = first_payload(storage)
    content = storage.read(*place)
    (piece,) = tmp_path.glob("convmlp-blocks/[!i]*-*")
    piece.write_bytes(b"")
    assert storage.read(*place) == content


def test_a_damaged_cached_index_heals_and_a_damaged_original_is_named(s3: S3Proxy, tmp_path: Path) -> None:
    good = remote(tmp_path).index(0)
    (piece,) = tmp_path.glob("convmlp-blocks/index-*")
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    assert remote(tmp_path).index(0).keys.equals(good.keys)
    storage = remote(tmp_path / "other")
    storage.shards[0] = storage.shards[0].model_copy(update={"index_sha256": "0" * 64})
    with pytest.raises(DataError, match=r"index\.arrow: its SHA-256 is not the manifest's"):
        storage.index(0)


def test_transient_faults_are_borne(s3: S3Proxy, tmp_path: Path) -> None:
    storage = remote(tmp_path)
    place = first_payload(storage)
    s3.faults.statuses = [503, 500, 429]
    s3.faults.cuts = 2
    assert storage.read(*place) == local().read(*place)
    assert not s3.faults.statuses
    assert not s3.faults.cuts


def test_an_outage_is_named_when_patience_ends_and_is_no_damage(s3: S3Proxy, tmp_path: Path) -> None:
    manifest = open_manifest(URL)
    storage = remote(tmp_path)
    place = first_payload(storage)
    s3.faults.always = 503
    with pytest.raises(StorageUnreachable, match=r"train-000000\.tar: gave up after \d+ tries in 1 s; check"):
        storage.read(*place)
    split = ShardedSplit(URL, manifest, "train", "webdataset", storage=storage)
    with pytest.raises(StorageUnreachable):
        split.payload(0)
    s3.reset()
    assert storage.read(*place) == local().read(*place)


def test_refused_access_is_told_at_once(s3: S3Proxy, tmp_path: Path) -> None:
    storage = remote(tmp_path)
    place = first_payload(storage)
    s3.faults.always = 403
    with pytest.raises(StorageUnreachable, match=r"access is refused; set AWS_PROFILE, or AWS_ACCESS_KEY_ID"):
        storage.read(*place)


def test_what_is_missing_is_named(s3: S3Proxy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"data\.path: no dataset manifest at s3://{BUCKET}/none/manifest"):
        open_manifest(f"s3://{BUCKET}/none")
    with pytest.raises(DataError, match=r"no dataset manifest at s3://no-such-bucket/x/manifest\.json"):
        open_manifest("s3://no-such-bucket/x")
    with pytest.raises(DataError, match=r"pip install 'convmlp-platform\[gs\]'|no credentials|refused"):
        open_manifest("gs://bucket/x")
    with pytest.raises(DataError, match="Protocol not known: nope"):
        open_manifest("nope://bucket/x")
    with pytest.raises(DataError, match=r"needs data\.cache_dir"):
        open_storage(URL, open_manifest(URL), "train", "webdataset")


def test_missing_and_cut_shards_are_listed_before_the_run(s3: S3Proxy, tmp_path: Path) -> None:
    manifest = open_manifest(URL)
    shards = shards_of(manifest, "train", "webdataset")
    assert check_remote_shards(URL, shards) == []
    copy = f"s3://{BUCKET}/broken"
    copy_dataset(str(digits("webdataset", "ffcv")), copy, progress=lambda _line: None)
    fs, path = open_filesystem(copy)
    fs.rm_file(f"{path}/{shards[0].file}")
    fs.pipe_file(f"{path}/{shards[1].file}", b"short")
    missing, cut = check_remote_shards(copy, shards)
    assert re.search(r"train-000000\.tar is missing: copy the dataset there again", missing)
    assert re.search(r"train-000001\.tar has 5 bytes, the manifest says \d+", cut)
    storage = remote(tmp_path, url=copy)
    with pytest.raises(DataError, match="there is no such file"):
        storage.read(*first_payload(storage, 0))
    with pytest.raises(DataError, match="the file is shorter than the dataset's manifest says"):
        storage.read(*first_payload(storage, 1))


def test_forked_readers_share_one_storage_and_fetch_each_block_once(s3: S3Proxy, tmp_path: Path) -> None:
    split = ShardedSplit(URL, open_manifest(URL), "train", "webdataset", storage=remote(tmp_path))
    with_folder = ShardedSplit(digits("webdataset", "ffcv"), open_manifest(URL), "train", "webdataset")
    split.payload(0)  # this process has a connection and an event loop, which the children must not use
    wanted = [with_folder.payload(sample).checksum for sample in range(600)]

    def read(_number: int) -> None:
        assert [split.payload(sample).checksum for sample in range(600)] == wanted

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=read, args=(number,)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    blocks = [request for request in s3.requests if request[0].endswith(".tar")]
    assert len(blocks) == len(set(blocks)) == 11  # 600 samples are 10 blocks, one of them in two shards


def test_ahead_fetches_many_blocks_at_once_without_waiting(s3: S3Proxy, tmp_path: Path) -> None:
    storage = remote(tmp_path)
    storage.blocks(range(0, 1438, 64))
    s3.reset()
    s3.faults.hold = threading.Event()
    storage.ahead(range(0, 1438, 64))
    storage.ahead(range(0, 1438, 64))
    assert s3.asked.wait(30)
    s3.faults.hold.set()
    storage._threads().shutdown(wait=True)
    asked = len(s3.requests)
    assert asked == len(set(s3.requests)) == 23
    for number in range(5):
        storage.read(*first_payload(storage, number))
    assert len(s3.requests) <= asked + 5  # blocks cut by a shard's start have another part there


def test_no_secret_is_printed(caplog: pytest.LogCaptureFixture) -> None:
    url = "http://user:hunter2@127.0.0.1:9/data?token=hunter3"
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as raised:
        from convmlp_platform.data.storage.storage import load_remote_manifest

        load_remote_manifest(url, HASTE)
    assert "hunter" not in str(raised.value) + caplog.text
    assert "http://127.0.0.1:9/data/manifest.json" in str(raised.value)


def test_a_cache_too_small_for_the_windows_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = shards_of(open_manifest(str(digits("webdataset", "ffcv"))), "train", "webdataset")
    total = sum(shard.bytes for shard in shards)
    assert warn_if_too_small(CacheOptions(tmp_path, total), shards, 4, 4096, 2) == total
    assert caplog.text == ""
    needed = warn_if_too_small(CacheOptions(tmp_path, 1 << 20), shards, 4, 100, 2)
    assert needed == round(4 * 100 * 3 * total / 1438)
    assert "data.cache_bytes (=1,048,576) is too small" in caplog.text


def test_plain_http_works(tmp_path: Path) -> None:
    with web_server(digits("webdataset", "ffcv").parent) as web:
        url = f"{web.url}/digits"
        manifest = open_manifest(url)
        split = ShardedSplit(url, manifest, "train", "webdataset", storage=remote(tmp_path, url=url))
        with_folder = ShardedSplit(digits("webdataset", "ffcv"), manifest, "train", "webdataset")
        assert [split.payload(s) for s in (0, 700, 1437)] == [with_folder.payload(s) for s in (0, 700, 1437)]
        with pytest.raises(DataError, match="no dataset manifest at http"):
            open_manifest(f"{url}/none")


def test_http_without_ranges_is_refused(tmp_path: Path) -> None:
    with web_server(digits("webdataset", "ffcv"), ranges=False) as web:
        storage = remote(tmp_path, url=web.url)
        with pytest.raises(DataError, match=r"the server sends the whole file where a part is asked for"):
            storage.read(*first_payload(storage))


def test_a_file_url_is_a_folder() -> None:
    folder = digits("webdataset", "ffcv")
    manifest = open_manifest(f"file://{folder}")
    storage = open_storage(f"file://{folder}", manifest, "train", "webdataset")
    assert isinstance(storage, LocalStorage)
    assert storage.read(*first_payload(storage)) == local().read(*first_payload(storage))
