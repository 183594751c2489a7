"""Ray prints a paragraph for each worker or node that dies. The driver says what happened itself, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

_DEATHS = ("A worker died or was killed", "has been marked dead because", "Raylet is terminated")


@contextmanager
def quiet_deaths() -> Iterator[None]:
    """Within: Ray's messages of that kind aren't printed. It has no setting for that."""
    module = ray._private.worker
    printed = getattr(module, "print_to_stdstream", None)
    if printed is None:
        yield
        return

    def print_others(message: dict[str, Any], ignore_prefix: bool) -> None:
        if not any(death in line for line in message.get("lines", ()) for death in _DEATHS):
            printed(message, ignore_prefix)

    module.print_to_stdstream = print_others
    try:
        yield
    finally:
        module.print_to_stdstream = printed
