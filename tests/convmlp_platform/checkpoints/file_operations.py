"""See, stop or record every operation that changes files in a folder: what the fault tests of saving stand on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_READING = {"os.listdir", "os.scandir"}
_AUDITED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


@dataclass(frozen=True)
class Operation:
    """A system call on a path, relative to the watched folder's parent. `other`: where a rename leads."""

    kind: str
    path: str
    other: str = ""
    data: bytes = b""


Handler = Callable[[Operation, Callable[[], Any]], Any]
"""Gets an operation and how to carry it out; returns what the call returns."""


@contextmanager
def watching(folder: Path, handler: Handler, reads: bool = False) -> Iterator[None]:
    """Route this process's operations on `folder` through `handler`: open for writing, write, fsync, mkdir, rename,
    replace, link, unlink, rmdir; with `reads` also opening for reading, listing, stat and statvfs, whose handler can
    only let them be or raise.

    Raises:
        AssertionError: something changed the folder by a way that isn't watched, so the tests would miss it.
    """
    root = str(folder.parent) + os.sep
    real = {
        name: getattr(os, name)
        for name in (
            "open",
            "write",
            "fsync",
            "mkdir",
            "rename",
            "replace",
            "link",
            "unlink",
            "remove",
            "rmdir",
        )
    }
    if reads:
        real |= {name: getattr(os, name) for name in ("stat", "statvfs")}
    files: dict[int, str] = {}
    local = threading.local()

    def within(path: Any) -> str | None:
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        return (
            text.removeprefix(root) if text == str(folder) or text.startswith(f"{folder}{os.sep}") else None
        )

    def carried_out(operation: Operation, call: Callable[[], Any]) -> Any:
        def watched() -> Any:
            local.depth = getattr(local, "depth", 0) + 1
            try:
                return call()
            finally:
                local.depth -= 1

        return handler(operation, watched)

    def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        name = within(path)
        if name is not None and flags & _WRITING:
            kind = "truncate" if flags & os.O_TRUNC else "open"
            descriptor = carried_out(Operation(kind, name), lambda: real["open"](path, flags, *rest, **named))
        else:
            descriptor = real["open"](path, flags, *rest, **named)
        files.pop(descriptor, None)
        if name is not None:
            files[descriptor] = name
        return int(descriptor)

    def write(descriptor: int, data: Any) -> Any:
        if descriptor not in files:
            return real["write"](descriptor, data)
        operation = Operation("write", files[descriptor], data=bytes(data))
        return carried_out(operation, lambda: real["write"](descriptor, data))

    def fsync(descriptor: int) -> Any:
        if descriptor not in files:
            return real["fsync"](descriptor)
        return carried_out(Operation("fsync", files[descriptor]), lambda: real["fsync"](descriptor))

    def of_path(kind: str) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            name = within(path)
            if name is None:
                return real[kind](path, *rest, **named)
            other = within(rest[0]) or "" if kind in ("rename", "replace", "link") else ""
            return carried_out(Operation(kind, name, other), lambda: real[kind](path, *rest, **named))

        return call

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if not active or event not in (_AUDITED | _READING) or getattr(local, "depth", 0):
            return
        if event in _READING or (event == "open" and isinstance(args[2], int) and not args[2] & _WRITING):
            name = within(args[0]) if args else None
            if reads and name is not None:
                carried_out(Operation(f"read {event}", name), lambda: None)
            return
        if event == "open" and not isinstance(args[2], int):
            return
        if args and within(args[0]) is not None:
            missed.append(f"{event} {args[0]}")

    active, missed = [True], []  # type: ignore[var-annotated]
    sys.addaudithook(audit)
    patched = {"open": open_, "write": write, "fsync": fsync}
    patched |= {name: of_path(name) for name in real if name not in patched}
    for name, function in patched.items():
        setattr(os, name, function)
    try:
        yield
    finally:
        active.clear()
        for name, function in real.items():
            setattr(os, name, function)
    assert not missed, f"not watched: {missed}"
