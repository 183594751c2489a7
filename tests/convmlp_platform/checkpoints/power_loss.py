"""What a disk may hold after a power loss, given the operations before it, by the most pessimistic rules.

Durable is only what was fsynced: a file's content by fsync of the file, a name by fsync of its folder. Of all else
any part may be there or not, in any order; a rename happens whole or not at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from file_operations import Operation


@dataclass
class File:
    """`durable` is what the last fsync saw."""

    content: bytes = b""
    durable: bytes = b""


Change = Callable[[dict[str, "File | Folder"]], None]


@dataclass
class Folder:
    """Names as the process sees them, as they are durable, and the changes between."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        change(self.names)
        self.pending.append(change)


class Disk:
    """The folder that operations' paths are relative to, as the process sees it and as the disk has it."""

    def __init__(self) -> None:
        self.root = Folder()

    def apply(self, operation: Operation) -> None:
        """Carry out one operation."""
        parent, name = self._folder(operation.path), PurePosixPath(operation.path).name
        match operation.kind:
            case "mkdir":
                made = Folder()
                parent.change(lambda names: names.update({name: made}))
            case "truncate" | "open":
                node = parent.names.get(name)
                if isinstance(node, File):
                    node.content = b"" if operation.kind == "truncate" else node.content
                else:
                    file = File()
                    parent.change(lambda names: names.update({name: file}))
            case "write":
                self._file(parent, name).content += operation.data
            case "fsync":
                found = parent.names[name]
                if isinstance(found, File):
                    found.durable = found.content
                else:
                    found.durable, found.pending = dict(found.names), []
            case "rename" | "replace":
                moved, target = parent.names[name], PurePosixPath(operation.other)
                assert self._folder(operation.other) is parent, "a rename across folders isn't modelled"

                def rename(names: dict[str, File | Folder]) -> None:
                    names.pop(name, None)
                    names[target.name] = moved

                parent.change(rename)
            case "unlink" | "remove" | "rmdir":
                parent.change(lambda names: names.pop(name, None) and None)
            case kind:
                raise AssertionError(f"{kind} isn't modelled")

    def _folder(self, path: str) -> Folder:
        node: File | Folder = self.root
        for part in PurePosixPath(path).parts[:-1]:
            assert isinstance(node, Folder)
            node = node.names[part]
        assert isinstance(node, Folder)
        return node

    @staticmethod
    def _file(parent: Folder, name: str) -> File:
        node = parent.names[name]
        assert isinstance(node, File)
        return node

    def after_power_loss(self, target: Path, rule: str, draw: random.Random) -> None:
        """Write to `target` what is left, by a rule:

        `lost`: nothing that wasn't fsynced. `names only`: all names, but only fsynced contents (what remains of a
        file that wasn't is empty). `mixed`: any changes of names, and of contents any part, or zeros.
        """
        _materialise(self.root, target, rule, draw)


def _materialise(folder: Folder, target: Path, rule: str, draw: random.Random) -> None:
    target.mkdir(exist_ok=True)
    names = dict(folder.names if rule == "names only" else folder.durable)
    if rule == "mixed":
        for change in folder.pending:
            if draw.random() < 0.5:
                change(names)
    for name, node in names.items():
        if isinstance(node, Folder):
            _materialise(node, target / name, rule, draw)
        else:
            (target / name).write_bytes(_content(node, rule, draw))


def _content(file: File, rule: str, draw: random.Random) -> bytes:
    if rule != "mixed" or file.content == file.durable:
        return file.durable
    cut = draw.randint(0, len(file.content))
    return draw.choice([file.durable, file.content, file.content[:cut], bytes(len(file.content))])
