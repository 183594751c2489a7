"""RUN/driver.json: which process trains a run or writes a result, so that two never do; a lock of
`data_prep.storage.locks`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from convmlp_platform.errors import LaunchError
from data_prep.storage import locks

NAME = "driver.json"


@dataclass(frozen=True)
class Lease:
    """The right to write one run or result. `convmlp check` asks whether another has it, `convmlp run` takes it.

    Args:
        path: of its lock.
        use: what its holder does, for the message: "run 'x' is being trained".
        field: the job's field that the lock's folder comes from.
    """

    path: Path
    use: str
    field: str

    def refuse_if_held(self) -> None:
        """Return unless another driver surely lives and has it. Doesn't wait, and writes nothing.

        Raises:
            LaunchError: one does.
        """
        holder = locks.living_holder(self.path)
        if holder is not None:
            raise self._refusal(str(holder))

    def view(self) -> locks.LockView | None:
        """Its lock as it is now, for those who only look; None: nobody has it. Doesn't wait, and writes nothing.

        Raises:
            OSError: it can't be read.
        """
        return locks.look(self.path)

    @contextmanager
    def hold(self, on_lost: Callable[[], object] | None = None) -> Iterator[threading.Event]:
        """Hold it within the block; yields an event that is set if it gets lost.

        Waits up to `locks.STALE_S` where the last driver ran elsewhere and didn't end its lease.

        Args:
            on_lost: is called in a thread when it gets lost.

        Raises:
            LaunchError: another driver lives and has it, or its folder, which is made, can't be written.
        """
        with ExitStack() as stack:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lost = stack.enter_context(locks.holding(self.path, on_lost=on_lost))
            except locks.Held as held:
                raise self._refusal(str(held)) from None
            except OSError as error:
                raise LaunchError(
                    f"{self.field}: can't write to {self.path.parent}: {error.strerror}"
                ) from None
            yield lost

    def _refusal(self, holder: str) -> LaunchError:
        return LaunchError(
            f"{self.use} by another driver, {holder}: wait for its end, stop it, or give this one a name "
            "of its own (--set name=...)"
        )


def run_lease(run: Path) -> Lease:
    """The lease of the run, or sweep, in this folder."""
    return Lease(run / NAME, f"run {run.name!r} is being trained", "checkpoint.path")


def result_lease(result: Path) -> Lease:
    """The lease of an evaluation's result in this folder. Its lock lies beside the folder, which is replaced."""
    lock = result.with_name(f".{result.name}.lock")
    return Lease(lock, f"result {result.name!r} is being written", "output.path")
