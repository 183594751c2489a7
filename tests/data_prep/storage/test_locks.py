"""A lock has one holder, of any number of processes that start together or follow a dead one; it names who it is."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.storage import lock_holder, locks
from data_prep.storage.locks import Held, Lock, flocked, holding, living_holder, look

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("RENEW_S", 0.05), ("STALE_S", 0.5), ("SETTLE_S", 0.1)):
        monkeypatch.setattr(locks, name, seconds)


def refuse(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def change(path: Path, **fields: object) -> None:
    """As another process would have written it: in a file of its own."""
    new = path.with_name("new")
    new.write_text(json.dumps(json.loads(path.read_text()) | fields))
    new.replace(path)


def left_behind(path: Path, **fields: object) -> None:
    """The lock of a process that had no time to let go of it."""
    with holding(path):
        text = path.read_text()
    path.write_text(text)
    change(path, token="0123456789abcdef", **fields)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


@contextlib.contextmanager
def holder_process(path: Path) -> Iterator[int]:
    """A helper of a process of its own holds the lock; yields its id. Both are killed in the end."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom data_prep.storage.locks import Lock\n"
        "pid = os.fork()\n"
        "if pid:\n    print(pid, flush=True)\n    time.sleep(600)\n"
        "lock = Lock(Path(sys.argv[1]), helper=True)\n"
        "assert lock.try_take()\nprint('held', flush=True)\ntime.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    (pid,) = (int(line) for line in lines if line != "held")
    try:
        yield pid
    finally:
        for one in (parent.pid, pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until
        time.sleep(0.01)


def contend(path: Path, go: Any, wrong: Any, seed: int) -> None:
    """Take the lock again and again; within it nobody else may be. Every fifth time, die in it."""
    draw, inside = random.Random(seed), path.with_name("inside")
    go.wait()
    for _ in range(40):
        lock = Lock(path)
        if not lock.try_take():
            continue
        with contextlib.suppress(FileNotFoundError):
            other = int(inside.read_text() or 0)
            if other and Path(f"/proc/{other}").exists() and other != os.getpid():
                state = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    wrong.set()
        inside.write_text(str(os.getpid()))
        if draw.random() < 0.2:
            os._exit(0)
        if inside.read_text() != str(os.getpid()):
            wrong.set()
        inside.unlink(missing_ok=True)
        lock.release()
    os._exit(0)


@pytest.mark.parametrize("rounds", [5, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_processes_that_start_together_or_follow_a_dead_one_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, rounds: int
) -> None:
    if not links:
        monkeypatch.setattr(locks.os, "link", refuse(errno.EPERM))
    for round_ in range(rounds):
        path = tmp_path / str(round_) / "lock"
        path.parent.mkdir()
        go, wrong = FORK.Event(), FORK.Event()
        processes = [
            FORK.Process(target=contend, args=(path, go, wrong, 10 * round_ + n))
            for n in range(2 + round_ % 5)
        ]
        for process in processes:
            process.start()
        go.set()
        for process in processes:
            process.join(60)
        assert not wrong.is_set()
        with holding(path):
            assert [file.name for file in path.parent.glob("*lock*")] == ["lock"]


def starter(path: Path, go: Any, said: Any) -> None:
    go.wait()
    try:
        with holding(path):
            said.put("held")
            while said.qsize() < 6:
                time.sleep(0.01)
    except Held:
        said.put("refused")
    said.close()
    said.join_thread()
    os._exit(0)


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", ["free", "dead"])
def test_six_starters_one_gets_in_and_stays(tmp_path: Path, before: str, rounds: int) -> None:
    for round_ in range(rounds):
        path = tmp_path / str(round_)
        if before == "dead":
            left_behind(path, pid=dead_pid())
        go, said = FORK.Event(), FORK.Queue()
        processes = [FORK.Process(target=starter, args=(path, go, said)) for _ in range(6)]
        for process in processes:
            process.start()
        go.set()
        for process in processes:
            process.join(60)
        assert sorted(said.get(timeout=10) for _ in processes) == ["held", *5 * ["refused"]]
        assert not path.exists()


def test_the_holder_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holding(path):
        with pytest.raises(Held, match=rf"process {os.getpid()} on "):
            holding(path).__enter__()
        holder = living_holder(path)
        assert holder is not None and holder.pid == os.getpid()
    assert living_holder(path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fields", [{"pid": 0}, {"born": 1.0}], ids=["gone", "its id was given again"])
def test_a_dead_holder_of_this_machine_is_followed_at_once(tmp_path: Path, fields: dict[str, float]) -> None:
    path = tmp_path / "lock"
    left_behind(path, **fields | ({"pid": dead_pid()} if "pid" in fields else {}))
    began = time.monotonic()
    with holding(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    assert time.monotonic() - began < locks.STALE_S / 2


def test_a_set_clock_kills_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's time of birth moves with the clock that is set."""
    with holding(tmp_path / "lock"):
        monkeypatch.setattr(locks.time, "time", lambda: 0.0)
        monkeypatch.setattr(lock_holder.psutil, "Process", refuse(errno.EIO))
        assert living_holder(tmp_path / "lock") is not None


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_is_dead_once_it_has_not_renewed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    left_behind(path, machine="elsewhere")
    os.utime(path, (time.time() + 3600,) * 2)  # clocks differ
    began = time.monotonic()
    with holding(path) as lost:
        assert not lost.is_set()
    assert time.monotonic() - began >= locks.STALE_S


@pytest.mark.usefixtures("quick")
def test_a_holder_elsewhere_that_renews_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    left_behind(path, machine="elsewhere")
    monkeypatch.setattr(locks.time, "sleep", lambda _: os.utime(path))
    with pytest.raises(Held, match="process"):
        holding(path).__enter__()


@pytest.mark.usefixtures("quick")
def test_a_holder_renews_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holding(path):
        first, until = path.stat().st_mtime_ns, time.monotonic() + 10
        while path.stat().st_mtime_ns == first:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_whoever_lost_the_lock_is_told_and_leaves_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holding(path) as lost:
        change(path, token="f" * 16)
        assert lost.wait(10)
    assert json.loads(path.read_text())["token"] == "f" * 16


@pytest.mark.usefixtures("quick")
def test_a_lock_removed_by_hand_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holding(path) as lost:
        path.unlink()
        until = time.monotonic() + 10
        while living_holder(path) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not lost.is_set()
    assert not path.exists()


def test_a_look_says_who_holds_it_and_whether_he_lives(tmp_path: Path, quick: None) -> None:
    """Nothing is taken, waited for or written."""
    path = tmp_path / "lock"
    assert look(path) is None
    with holding(path):
        found = look(path)
        assert found is not None and found.holder is not None and found.lives
        assert found.holder.pid == os.getpid() and found.renewed == pytest.approx(time.time(), abs=60)
        until = time.monotonic() + 20.0
        while (later := look(path)) is not None and later.mark == found.mark:
            assert time.monotonic() < until, "a renewal changes the mark"
    left_behind(path, pid=dead_pid())
    dead = look(path)
    assert dead is not None and dead.lives is False
    left_behind(path, machine="another", host="gpu-07")
    os.utime(path, (1000.0, 1000.0))
    elsewhere = look(path)
    assert elsewhere is not None and elsewhere.lives is None and elsewhere.renewed == 1000.0
    path.write_text("{")
    damaged = look(path)
    assert damaged is not None and damaged.holder is None and damaged.lives is None
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"host": "a',
        b"1e999",
        b"[" * 9999,
        b'{"token": 5}',
        b"\xff",
        b'{"host":"a","pid":-1,"machine":"b","born":0,"token":"../../x"}',
    ],
)
def test_a_damaged_file_holds_nobody_up_for_long(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert living_holder(tmp_path / "lock") is None
    with holding(tmp_path / "lock"):
        assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_a_stopped_holder_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder_process(path) as pid:
        stop(pid)
        with pytest.raises(Held, match=rf"process {pid} .*stopped: `kill -CONT {pid}` .*`kill -9 {pid}`"):
            holding(path).__enter__()


@pytest.mark.parametrize("stopped", [True, False])
def test_an_orphan_is_killed_if_it_is_stopped(tmp_path: Path, stopped: bool) -> None:
    path = tmp_path / "lock"
    with holder_process(path) as pid:
        if stopped:
            stop(pid)
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        if stopped:
            with holding(path):
                assert json.loads(path.read_text())["pid"] == os.getpid()
        else:
            with pytest.raises(Held, match=f"process {pid}"):
                holding(path).__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_flock_a_lock_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", refuse(number))
    other = tmp_path / "locks" / "piece"
    with (tmp_path / "piece").open("w") as file, flocked(file.fileno(), other):
        assert living_holder(other) is not None
        with pytest.raises(Held):
            flocked(file.fileno(), other, wait=False).__enter__()
    assert living_holder(other) is None
