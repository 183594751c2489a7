"""The block cache: each piece is fetched once, the size is kept, and nothing a crash leaves does harm."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp_platform.data.storage.block_cache import BlockCache, CacheOptions, Fetch
from convmlp_platform.errors import DataError
from data_prep.storage import locks

FORK = multiprocessing.get_context("fork")


def cache_in(folder: Path, limit: int = 1 << 20) -> BlockCache:
    return BlockCache(CacheOptions(folder, limit))


def content_of(name: str, size: int) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


def get(cache: BlockCache, name: str, size: int) -> bytes:
    return cache.open_or_fetch(name, size, lambda: content_of(name, size)).read(0, size)


def never() -> bytes:
    raise AssertionError("fetched again")


def stored(cache: BlockCache) -> dict[str, int]:
    kept = (path for path in cache.folder.iterdir() if path.name not in ("usage", "locks"))
    return {path.name: path.stat().st_size for path in kept}


@pytest.fixture(params=["flock", "no flock"])
def locking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if request.param == "no flock":
        monkeypatch.setattr(locks.fcntl, "flock", refuse)


def in_processes(count: int, work: Callable[[int], None]) -> None:
    processes = [FORK.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


@pytest.mark.usefixtures("locking")
def test_a_piece_is_fetched_once_by_many_processes(tmp_path: Path) -> None:
    barrier = FORK.Barrier(4)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def fetch(name: str) -> Fetch:
        def work() -> bytes:
            os.write(log, f"{name}\n".encode())
            return content_of(name, 5000)

        return work

    def read_all(number: int) -> None:
        cache = cache_in(tmp_path / "cache")
        barrier.wait()
        for at in range(40):
            name = f"piece-{(at + 10 * number) % 40}"
            assert cache.open_or_fetch(name, 5000, fetch(name)).read(0, 5000) == content_of(name, 5000)

    in_processes(4, read_all)
    fetched = (tmp_path / "log").read_text().split()
    assert sorted(fetched) == sorted(f"piece-{number}" for number in range(40))
    assert stored(cache_in(tmp_path / "cache")) == {f"piece-{number}": 5000 for number in range(40)}


@pytest.mark.usefixtures("locking")
def test_a_fetch_killed_midway_is_done_anew(tmp_path: Path) -> None:
    inside: Event = FORK.Event()

    def fetch_forever(_number: int) -> None:
        def fetch() -> bytes:
            part = next(cache.folder.glob("*.part"))
            part.write_bytes(b"half")
            inside.set()
            signal.pause()
            raise AssertionError

        cache = cache_in(tmp_path)
        cache.open_or_fetch("a", 9, fetch)

    process = FORK.Process(target=fetch_forever, args=(0,))
    process.start()
    assert inside.wait(30)
    cache = cache_in(tmp_path)
    assert stored(cache) == {"a.part": 4}
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert get(cache, "a", 9) == content_of("a", 9)
    assert stored(cache) == {"a": 9}


@pytest.mark.usefixtures("locking")
def test_what_killed_fetches_left_is_swept_with_the_next_eviction(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 3000)
    (cache.folder / "orphan.part").write_bytes(b"x" * 500)
    for name in "abcd":
        get(cache, name, 1000)
    assert "orphan.part" not in stored(cache)


def test_a_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)

    def fail() -> bytes:
        raise DataError("no network")

    with pytest.raises(DataError, match="no network"):
        cache.open_or_fetch("a", 5, fail)
    assert stored(cache) == {}
    assert get(cache, "a", 5) == b"aaaaa"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 2000)), max_size=60), st.integers(0, 6000))
@settings(max_examples=40)
def test_the_size_stays_below_the_limit(requests: list[tuple[int, int]], limit: int) -> None:
    with TemporaryDirectory() as folder:
        cache = cache_in(Path(folder), limit)
        for number, size in requests:
            assert get(cache, f"{number}-{size}", size) == content_of(f"{number}-{size}", size)
            total = sum(stored(cache).values())
            assert total <= limit or stored(cache) == {f"{number}-{size}": size}


def test_the_size_stays_below_the_limit_with_many_processes(tmp_path: Path) -> None:
    limit, size, count = 20_000, 900, 4

    def churn(number: int) -> None:
        cache = cache_in(tmp_path, limit)
        for at in range(60):
            get(cache, f"{number}-{at}", size)
            try:
                found = sum(stored(cache).values())
            except FileNotFoundError:  # evicted while it was listed
                continue
            assert found <= limit

    in_processes(count, churn)
    assert sum(stored(cache_in(tmp_path)).values()) <= limit


def test_a_lost_count_is_taken_anew(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 5000)
    for name in "abcd":
        get(cache, name, 1000)
    (cache.folder / "usage").unlink()
    for name in "efgh":
        get(cache, name, 1000)
        assert sum(stored(cache).values()) <= 5000


def test_the_least_recently_opened_goes_first_and_indexes_last(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 5000)
    for age, name in enumerate(["index-x", "a", "b", "c", "d"]):
        get(cache, name, 900)
        os.utime(cache.folder / name, (1_000_000 + age, 1_000_000 + age))
    cache.open("a", 900)
    get(cache, "e", 900)
    assert set(stored(cache)) == {"index-x", "a", "c", "d", "e"}


def test_an_evicted_piece_that_is_open_stays_readable(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 1000)
    piece = cache.open_or_fetch("a", 900, lambda: content_of("a", 900))
    get(cache, "b", 900)
    assert set(stored(cache)) == {"b"}
    assert piece.read(0, 900) == content_of("a", 900)


def test_a_piece_of_the_wrong_size_is_fetched_anew(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    get(cache, "a", 100)
    (cache.folder / "a").write_bytes(b"")  # as a power cut leaves a renamed file
    assert get(cache, "a", 100) == content_of("a", 100)


def test_discarding_spares_what_another_process_has_fetched_since(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    old = cache.open_or_fetch("a", 10, lambda: b"damaged---")
    assert cache.discard("a", old)
    new = cache.open_or_fetch("a", 10, lambda: b"good------")
    assert cache.discard("a", old)
    assert cache.open_or_fetch("a", 10, never).read(0, 10) == b"good------"
    assert cache.discard("a", new)
    assert not cache.discard("a")


def test_other_files_in_the_users_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x" * 5000)
    cache = cache_in(tmp_path, 1000)
    for name in "abc":
        get(cache, name, 900)
    assert (tmp_path / "precious").stat().st_size == 5000


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"data\.cache_dir \(=.*file/convmlp-blocks\) can't be used: Not a dir"
    ):
        cache_in(tmp_path / "file")


def test_its_folder_is_the_owners_alone(tmp_path: Path) -> None:
    assert cache_in(tmp_path / "below").folder.stat().st_mode & 0o777 == 0o700
