"""Shard tasks on a Ray cluster; the one file of data preparation that knows Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from data_prep.errors import DataPrepError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TASKS_AHEAD_PER_CPU = 2


def ray_map(
    fn: Callable[[Item], Result],
    items: Iterable[Item],
    /,
    *,
    num_cpus: float = 1,
    max_in_flight: int | None = None,
) -> Iterator[Result]:
    """Apply `fn` to every item, one Ray task an item, and yield the results as they are done.

    Ray must be initialised, and its workers must be able to import `fn` and see its files.

    Args:
        fn: a picklable function.
        items: its picklable arguments; taken only as fast as tasks end.
        num_cpus: CPUs a task takes.
        max_in_flight: tasks submitted but not yielded; by default twice as many as the cluster can run
            at once, so a cluster neither idles nor holds the arguments of a million tasks.

    Raises:
        DataPrepError: as a task raised it, or because Ray lost a task for good. Other tasks are cancelled.
    """
    task = ray.remote(num_cpus=num_cpus)(fn)
    slots = max(1, int(ray.cluster_resources().get("CPU", 1) / max(num_cpus, 1e-3)))
    limit = max_in_flight or _TASKS_AHEAD_PER_CPU * slots
    pending: list[Any] = []
    try:
        for item in items:
            if len(pending) >= limit:
                yield _take_one(pending)
            pending.append(task.remote(item))
        while pending:
            yield _take_one(pending)
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)


def _take_one(pending: list[Any]) -> Any:
    """The first result to be there; its reference leaves `pending`, so that Ray can drop the object."""
    (done, *_), rest = ray.wait(pending, num_returns=1)
    pending[:] = rest
    return _result(done)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, DataPrepError):
            lost = error.cause
            raise DataPrepError(str(lost), cause=lost.cause, details=lost.details) from None
        raise
    except RayError as error:
        raise DataPrepError(f"Ray lost a data-prep task for good: {error}") from None
