"""A folder's whole state, to show that nothing in it was touched."""

from __future__ import annotations

import hashlib
from pathlib import Path


def state_of(root: Path) -> dict[str, tuple[int, str]]:
    """Time and content of each file and folder."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in (root, *sorted(root.rglob("*")))
    }
