"""A test's fork leaves alone what its parent will collect."""

from __future__ import annotations

import gc
import os
from contextlib import suppress

import pytest


class Tells:
    """In a cycle, so that only the collector finds it."""

    def __init__(self, writing: int) -> None:
        self.myself, self.writing = self, writing

    def __del__(self) -> None:
        os.write(self.writing, b"!")


def test_a_fork_collects_nothing_that_it_inherited() -> None:
    reading, writing = os.pipe()
    gc.disable()
    try:
        Tells(writing)
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        os.set_blocking(reading, False)
        with suppress(BlockingIOError):
            pytest.fail(f"the child has collected it: {os.read(reading, 1)!r}")
        gc.collect()
        assert os.read(reading, 1) == b"!", "it was there to be collected"
    finally:
        gc.enable()
        os.close(reading)
        os.close(writing)
