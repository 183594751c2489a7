"""Accelerate keeps one precision and one world a process, however many engines a test or a benchmark builds in it."""

from __future__ import annotations

from accelerate.state import AcceleratorState


def forget_accelerate() -> None:
    """The next engine is built as if it were the process's first."""
    AcceleratorState._reset_state(reset_partial_state=True)
