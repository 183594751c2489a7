"""RUN/driver.json: which process trains a run or writes a result, so that two never do; a lock of
`data_prep.storage.locks`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from convmlp_platform.errors import LaunchError
from data_prep.storage import locks

NAME = "driver.json"


def refuse_if_held(run: Path) -> None:
    """Return unless another driver of this run surely lives. Doesn't wait, and writes nothing.

    Raises:
        LaunchError: one does.
    """
    holder = locks.living_holder(run / NAME)
    if holder is not None:
        raise _refusal(f"run {run.name!r} is being trained", str(holder))


@contextmanager
def lease(run: Path, on_lost: Callable[[], object] | None = None) -> Iterator[threading.Event]:
    """Hold the lease of the run in this folder within the block; yields an event that is set if it gets lost.

    Waits up to `locks.STALE_S` where the last driver ran elsewhere and didn't end its lease.

    Args:
        run: the folder, which is made.
        on_lost: is called in a thread when the lease gets lost.

    Raises:
        LaunchError: another driver lives, or the folder can't be written.
    """
    with _leased(run / NAME, f"run {run.name!r} is being trained", "checkpoint.path", on_lost) as lost:
        yield lost


@contextmanager
def result_lease(result: Path) -> Iterator[None]:
    """Hold the lease of an evaluation's result in this folder; it lies beside the folder, which is replaced.

    Raises:
        LaunchError: another evaluation writes it, or its parent can't be written.
    """
    with _leased(_of_result(result), f"result {result.name!r} is being written", "output.path"):
        yield


def refuse_if_result_held(result: Path) -> None:
    """Return unless another evaluation surely writes this result. Doesn't wait, and writes nothing.

    Raises:
        LaunchError: one does.
    """
    holder = locks.living_holder(_of_result(result))
    if holder is not None:
        raise _refusal(f"result {result.name!r} is being written", str(holder))


def _of_result(result: Path) -> Path:
    return result.with_name(f".{result.name}.lock")


@contextmanager
def _leased(
    path: Path, what: str, field: str, on_lost: Callable[[], object] | None = None
) -> Iterator[threading.Event]:
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lost = stack.enter_context(locks.holding(path, on_lost=on_lost))
        except locks.Held as held:
            raise _refusal(what, str(held)) from None
        except OSError as error:
            raise LaunchError(f"{field}: can't write to {path.parent}: {error.strerror}") from None
        yield lost


def _refusal(what: str, holder: str) -> LaunchError:
    return LaunchError(
        f"{what} by another driver, {holder}: wait for its end, stop it, or give this one a name "
        "of its own (--set name=...)"
    )
