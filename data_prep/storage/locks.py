"""Locks between processes, on one machine or on several that share a folder. A lock is a file that names its holder.

File systems differ in what `flock` does: NFS and Lustre may have none, or one that other machines don't see. All of
them make a file under a name that is free for one caller only (`link`), so that is what a lock rests on:

NAME          the holder, as JSON; written once, never changed
NAME.TOKEN    whoever follows the holder with this token; made only when that one is dead

The holder is the last of this chain. Its follower is whoever makes `NAME.TOKEN`, and then gives it the name `NAME`; one
that acted on a chain that has changed meanwhile finds so when it looks again, and takes its file back. So of any number
of processes that start together, or that follow a dead one together, one holds the lock, at every instant.

A holder on this machine is dead when its process is gone. One elsewhere is dead when it hasn't renewed its file's time
for `STALE_S`, seen from here, because clocks of machines differ. One that is stopped (SIGSTOP) lives, and is named,
unless it worked for a process that has ended: such an orphan is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.storage.json_files import DamagedJson, parse_json
from data_prep.storage.lock_holder import Holder, killed_orphan, myself

logger = logging.getLogger(__name__)

OF_FOLDER = ".lock"
"""Name of the lock on the folder that it lies in."""
RENEW_S, STALE_S = 3.0, 30.0
SETTLE_S = 2.0
"""Given to a file that says nothing: where there are no links, its writer may be amid writing it."""
_LOOK_S = 0.1
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""A file system says so that it knows no `flock`."""
_TOKEN = re.compile(r"[0-9a-f]{16}")


class Held(Exception):
    """Another process holds the lock; `holder` is None where its file doesn't say who it is."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        self.holder = holder
        super().__init__(str(holder) if holder else f"whoever wrote {path}, which is damaged")


@dataclass(frozen=True)
class LockView:
    """A lock that somebody holds, or held until his death, as a look at its file shows it.

    Args:
        holder: None where the file doesn't say who it is.
        lives: whether it does, by its process on this machine; None: it is elsewhere, or hidden from us, and only
            `renewed` tells.
        renewed: when it last renewed the lock, in unix seconds by the clock of the file's storage.
        mark: changes at each renewal, and with the holder: two looks that differ show that it lives.
    """

    holder: Holder | None
    lives: bool | None
    renewed: float
    mark: tuple[str, int]


def look(path: Path) -> LockView | None:
    """The lock at `path` as it is now; None: it is free. Doesn't wait, and writes nothing.

    Raises:
        OSError: it can't be read.
    """
    chain = _chain(path)
    if not chain:
        return None
    link = chain[-1]
    lives = not link.holder.is_dead if link.holder is not None and link.holder.is_seen else None
    return LockView(link.holder, lives, link.renewed / 1e9, (link.token, link.renewed))


def living_holder(path: Path) -> Holder | None:
    """The holder that surely lives, on this machine. Doesn't wait, and writes nothing."""
    try:
        view = look(path)
    except OSError:  # whoever goes on to take it is told
        return None
    return view.holder if view is not None and view.lives else None


@contextmanager
def holding(
    path: Path,
    *,
    patience: float = 0.0,
    on_lost: Callable[[], object] | None = None,
) -> Iterator[threading.Event]:
    """Hold the lock at `path` within the block; yields an event that is set if it gets lost.

    Waits for up to `STALE_S` where the holder is elsewhere and may be dead.

    Args:
        path: of the lock's file, in a folder that exists.
        patience: seconds to wait for a holder that lives.
        on_lost: is called in a thread when the lock gets lost.

    Raises:
        Held: another process lives and holds it.
        OSError: its folder can't be written.
    """
    lock = Lock(path, on_lost=on_lost)
    until = time.monotonic() + patience
    while not lock.try_take():
        if lock.is_surely_held and time.monotonic() >= until:
            raise Held(path, lock.holder)
        time.sleep(_LOOK_S)
    try:
        yield lock.lost
    finally:
        lock.release()


class Lock:
    """A process's way to the lock at `path`, and its hold on it. `lost` is set if another takes it over."""

    def __init__(
        self, path: Path, *, helper: bool = False, on_lost: Callable[[], object] | None = None
    ) -> None:
        self.path, self.lost, self._on_lost = path, threading.Event(), on_lost
        self.holder: Holder | None = None
        """The other one that was found holding it."""
        self.is_surely_held = False
        """Whether that one lives for sure: it is on this machine, or was seen to renew its lock."""
        self._mine = myself(helper=helper)
        self._descriptor = -1
        self._seen: tuple[str, int] | None = None
        self._since = 0.0
        self._done = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)

    def try_take(self) -> bool:
        """Take the lock unless another holds it or may do so; whether it was taken. Call again to see a holder
        elsewhere come to be dead.

        Raises:
            OSError: the folder can't be written.
        """
        while True:
            chain = _chain(self.path)
            if chain and not self._is_over(chain[-1]):
                return False
            place = self._after(chain[-1].token) if chain else self.path
            if not self._create(place):
                continue
            if _tokens(self.path) == [*(link.token for link in chain), self._mine.token]:
                with contextlib.suppress(FileNotFoundError):
                    if chain:
                        place.rename(self.path)
                    self._sweep()
                    self._renewal.start()
                    return True
            self._close()
            place.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of the lock. In a forked child of the holder nothing happens."""
        if os.getpid() != self._mine.pid:
            return
        self._done.set()
        self._renewal.join(timeout=RENEW_S)
        with contextlib.suppress(OSError):
            if _tokens(self.path) == [self._mine.token]:
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _after(self, token: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{token}")

    def _is_over(self, link: _Link) -> bool:
        """Whether this last link's holder is dead; remembers what it saw of it."""
        self.holder, before, now = link.holder, self._seen, (link.token, link.renewed)
        if before != now:
            self._seen, self._since = now, time.monotonic()
        if link.holder is not None and link.holder.is_seen:
            self.is_surely_held = not (link.holder.is_dead or killed_orphan(link.holder, self.path))
            return not self.is_surely_held
        self.is_surely_held = (
            before is not None and before[0] == now[0] and (self.is_surely_held or before != now)
        )
        return time.monotonic() - self._since > (SETTLE_S if link.holder is None else STALE_S)

    def _create(self, place: Path) -> bool:
        """Make the file `place` with our name in it; False where it is there already."""
        content = json.dumps(asdict(self._mine)).encode()
        own = self.path.with_name(f".{self.path.name}-{self._mine.token}")
        self._descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        made = False
        try:
            _write(self._descriptor, content)
            try:
                os.link(own, place)
                made = True
            except FileExistsError:
                # NFS: the answer may have got lost, and this is the one to a repeated request.
                made = os.fstat(self._descriptor).st_nlink > 1
            except FileNotFoundError:  # swept by a holder that has just begun
                made = False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                made = self._create_without_links(place, content)
        finally:
            own.unlink(missing_ok=True)
            if not made:
                self._close()
        return made

    def _create_without_links(self, place: Path, content: bytes) -> bool:
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        self._close()
        self._descriptor = descriptor
        _write(descriptor, content)
        return True

    def _sweep(self) -> None:
        """Remove what others have left that died on their way to the lock, or found it changed."""
        name, follower = self.path.name, self._after(self._mine.token).name
        for entry in os.scandir(self.path.parent):
            left = entry.name.removeprefix(f".{name}-"), entry.name.removeprefix(f"{name}.")
            if entry.name != follower and any(one != entry.name and _TOKEN.fullmatch(one) for one in left):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()

    def _renew(self) -> None:
        warned = False
        while not self._done.wait(RENEW_S):
            try:
                found = _tokens(self.path)
                if not found:  # somebody removed it by hand
                    self._close()
                    self._create(self.path)
                    found = _tokens(self.path)
                if found != [self._mine.token]:
                    self.lost.set()
                    if self._on_lost is not None:
                        self._on_lost()
                    return
                os.utime(self._descriptor)
            except OSError as error:  # a full disk is no reason to stop what the lock is held for
                if not warned:
                    logger.warning("%s can't be renewed: %s", self.path, error.strerror)
                warned = True


@dataclass(frozen=True)
class _Link:
    """A file of the chain. `holder` is None where it is damaged; `renewed` changes at each renewal."""

    token: str
    holder: Holder | None
    renewed: int


def _chain(path: Path) -> list[_Link]:
    """The files of a lock, from the first to the holder's; none where it is free."""
    chain: list[_Link] = []
    place = path
    while (link := _read(place)) is not None and all(link.token != one.token for one in chain):
        chain.append(link)
        place = path.with_name(f"{path.name}.{link.token}")
    return chain


def _tokens(path: Path) -> list[str]:
    return [link.token for link in _chain(path)]


def _read(path: Path) -> _Link | None:
    try:
        with path.open("rb") as file:
            content, renewed = file.read(1 << 16), os.fstat(file.fileno()).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        holder = parse_json(content, Holder)
        if _TOKEN.fullmatch(holder.token):
            return _Link(holder.token, holder, renewed)
    except DamagedJson:
        pass
    return _Link(hashlib.sha256(content).hexdigest()[:16], None, renewed)


def _write(descriptor: int, content: bytes) -> None:
    if os.write(descriptor, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def take_flock(descriptor: int, *, wait: bool = True) -> bool:
    """Take `flock` on an open file or folder, until the last copy of its descriptor is closed; False where its file
    system has none.

    Args:
        wait: until it is free.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it can't be had.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        return False
    return True


@contextmanager
def flocked(descriptor: int, path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold `flock` on an open file within the block; where its file system has none, the lock at `path`.

    For many short holds on a disk that one machine uses.

    Args:
        wait: until it is free.

    Raises:
        Held, BlockingIOError: another process holds it.
        OSError: it can't be had.
    """
    if take_flock(descriptor, wait=wait):
        try:
            yield
        finally:
            # Not left to close(): a child forked meanwhile would hold the lock with its copy of the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with holding(path, patience=float("inf") if wait else 0.0):
        yield
