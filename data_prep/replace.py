"""Replacing a file by exactly what it ought to be, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from data_prep.files import TEMP_PREFIX, sha256_file, sync_folder


def replace_if_same(path: Path, sha256: str, write: Callable[[Path], None]) -> bool:
    """Let `write` fill a temporary neighbour, which takes the name `path` if it has the hex SHA-256 that is wanted.

    Otherwise `path` stays as it is, and False is returned.
    """
    temporary = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        if sha256_file(temporary) != sha256:
            return False
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True
