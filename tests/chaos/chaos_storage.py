"""The storages that the chaos takes away: two small disks, the dataset's web server, and the clock."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from web_server import WebServer, web_server

DISK_MB = 160


class Disk:
    """A file system of its own that really fills up and really refuses, where this user may mount one; else a folder,
    and the faults act inside the training process, on checkpoints alone."""

    def __init__(self, path: Path, flags: Path) -> None:
        self.path, self.flags = path, flags
        self.path.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"]
        self.real = _quiet(["mount", *options, str(self.path)])

    def fill(self) -> None:
        """Not a byte is free, until `free`. To be called again and again: retired checkpoints make room."""
        if not self.real:
            (self.flags / "no-space").touch()
            return
        with suppress(OSError), (self.path / "filler").open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)
        (self.flags / "no-space").unlink(missing_ok=True)

    def refuse(self) -> None:
        """No file can be created or written, until `accept`. To be called again and again: an open file prevents it."""
        if not self.real:
            (self.flags / "refused").touch()
            return
        _quiet(["mount", "-o", "remount,ro", str(self.path)])

    def accept(self) -> None:
        if self.real:
            _quiet(["mount", "-o", "remount,rw", str(self.path)])
        (self.flags / "refused").unlink(missing_ok=True)

    def close(self) -> None:
        if self.real:
            _quiet(["umount", "--lazy", str(self.path)])


class DataServer:
    """The dataset behind HTTP, and the nodes' cache of it."""

    def __init__(self, server: WebServer, folder: Path, cache: Path) -> None:
        self.server, self.folder, self.cache = server, folder, cache

    @property
    def url(self) -> str:
        return self.server.url

    def leave(self) -> None:
        """Answer nothing, until `come_back`; what nodes have cached is gone, as if it had been evicted."""
        self.server.away = True
        self.forget_cached()

    def come_back(self) -> None:
        self.server.away = False

    def lose_shard(self) -> Path:
        """Delete the first shard of the training split, until `restore`."""
        shard = min(self.folder.glob("webdataset/train-*.tar"))
        shard.rename(shard.with_suffix(".lost"))
        self.forget_cached()
        return shard

    def restore(self) -> None:
        for lost in self.folder.glob("webdataset/*.lost"):
            lost.rename(lost.with_suffix(".tar"))

    def forget_cached(self) -> None:
        """Empty the cache. Processes that hold a block open go on reading it."""
        for path in list(self.cache.glob("*/*")):
            path.unlink(missing_ok=True)


@contextmanager
def data_server(prepared: Path, root: Path) -> Iterator[DataServer]:
    """Serve a copy of a prepared dataset for as long as the block lasts."""
    folder, cache = root / "data", root / "cache"
    shutil.copytree(prepared, folder)
    cache.mkdir()
    with web_server(folder) as server:
        yield DataServer(server, folder, cache)


class Clock:
    """The wall clock of the cluster's Python processes; see inside/sitecustomize.py. (Under libfaketime Ray's core
    doesn't start: its threads time out.)"""

    def __init__(self, file: Path) -> None:
        self.file = file

    def move(self, seconds: int) -> None:
        """Show a time so much later than the real one (earlier, where it is negative)."""
        new = self.file.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self.file)


def _quiet(command: list[str]) -> bool:
    with suppress(FileNotFoundError):
        return not subprocess.run(command, capture_output=True).returncode
    return False
