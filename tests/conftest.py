"""Common to all tests: this folder is importable (`from ranks import run_ranks`); Ray makes no token; no deadlines; the
files that take longest come first."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Test workers with OpenMP threads of their own, which spin as they wait, took 8 times as long beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CONVMLP_RAY_START_S", "240")  # several tests share the cores

# How long an example takes says more about the machine than about the code. `make test-slow` tries more of them.
settings.register_profile("fast", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile("fast")


# A file goes to one worker as a whole: a long one that comes last leaves the other workers idle.
LONGEST_FIRST = (
    "test_remote_run",  # it forks a reader beside S3's threads, which once crashed late in a worker's life
    "test_launch_on_ray", "test_engines_agree", "test_run", "test_bad_numbers", "test_commit_first",
    "test_engine_refusal", "test_detection_task", "test_tracking_server", "test_launch_secrets", "test_blame",
    "test_launch_check", "test_exactly_once", "test_tracking_preparation", "test_reader_in_a_run",
    "test_checkpoint_faults", "test_fault_matrix", "test_fuzz_short", "test_loader", "test_cli",
    "test_models_golden", "test_saver",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the longest files to the front; the rest keeps its order."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True)
def finish_with_ffcv(request: pytest.FixtureRequest) -> Iterator[None]:
    """numba's functions raise when they are collected; amid another test's `compile` CPython 3.11 gives up on that."""
    yield
    if request.node.get_closest_marker("ffcv"):
        gc.collect()
