"""Runs whose curves and timeline stay undrawn: matplotlib takes 1.7 s of a core for them, as much as the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from convmlp_platform.training.outputs import goodput_callback, outputs


def blank(*values: Any) -> Path:
    """An empty file, where a picture would be written."""
    path = Path(values[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@contextmanager
def without_drawing() -> Iterator[None]:
    """Within: the pictures that a run ends with are empty files."""
    with (
        mock.patch.object(outputs, "plot_curves", side_effect=blank),
        mock.patch.object(goodput_callback, "plot", side_effect=blank),
    ):
        yield
