"""The Python code of a page of the documentation, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def python_blocks(page: str, heading: str | None = None) -> list[str]:
    """The fenced Python blocks of a page, or of its part under a heading, in order."""
    text = (DOCS / page).read_text()
    if heading is not None:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_code(code: str, page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a block in the current folder, as a script's main module; returns its names.

    Args:
        code: as `python_blocks` gives it.
        page: for tracebacks.
        names: those of the blocks before it.
    """
    found = {"__name__": "__main__"} if names is None else names
    exec(compile(code, f"docs/{page}", "exec"), found)
    return found
