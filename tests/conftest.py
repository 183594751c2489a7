"""Common to all tests: this folder is importable (`from ranks import run_ranks`); Ray makes no token; no deadlines; the
files that take longest come first, and those that share what is dear to one worker."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import empty_database
import pytest
from forked_workers import start_source
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# Test workers with OpenMP threads of their own, which spin as they wait, took 8 times as long beside each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CONVMLP_RAY_START_S", "240")  # several tests share the cores

# Processes that tests start import tests/startup/sitecustomize.py.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent / "startup"), os.environ.get("PYTHONPATH")))
)

# How long an example takes says more about the machine than about the code. `make test-slow` tries more of them.
settings.register_profile("fast", deadline=None, max_examples=15)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile("fast")


# Files that share what is dear to start go to one test worker: the server that ranks are forked from (17 s of a core),
# an MLflow store with its client (6 s), FFCV and what it compiles (10 s), an S3 server (4 s).
TOGETHER = {
    "S3": (
        "test_remote_run", "test_prep_copy", "test_remote_storage", "test_remote_read_ahead", "test_checkpoint_storage",
    ),
    "ranks": (
        "test_engines_agree", "test_bad_numbers", "test_commit_first", "test_run", "test_fault_matrix",
        "test_lost_peer", "test_engine_refusal", "test_plain_loop", "test_system_metrics",
    ),
    "MLflow": (
        "test_tracking_server", "test_tracking_preparation", "test_tracking_registry", "test_tracking_replayer",
        "test_mlflow_server", "test_moved_store", "test_decision_log", "test_promote", "test_registered_before",
        "test_lineage", "test_reproduce", "test_mlflow_runs",
    ),
    "FFCV": ("test_prep_ffcv", "test_prep_core_annotations", "test_ffcv_interop"),
}  # fmt: skip
GROUP_OF = {file: group for group, files in TOGETHER.items() for file in files}

# All else goes by files: a long one that comes last leaves the other workers idle.
LONGEST_FIRST = (
    *TOGETHER["S3"], *TOGETHER["ranks"], "test_launch_on_ray", *TOGETHER["MLflow"], *TOGETHER["FFCV"],
    "test_check_job", "test_hostile_bundles", "test_exactly_once", "test_detection_task", "test_locks",
    "test_checkpoint_faults", "test_fuzz_short", "test_models_golden", "test_replay", "test_model_families",
    "test_launch_secrets", "test_order", "test_drivers_at_once", "test_cli_terminals", "test_model_cost", "test_cli",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In place of `--dist loadfile`: by files, or groups of them."""
    from xdist.scheduler import LoadFileScheduling

    class ByGroup(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return GROUP_OF.get(Path(file).stem, file)

    return ByGroup(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Have the workers of this machine forked by a process that has imported what tests import."""
    from execnet import XSpec

    if len(specs) > 1 and sys.platform == "linux" and all(spec.popen for spec in specs):
        worker, end = start_source()
        config.add_cleanup(end)
        specs[:] = [XSpec(f"popen//id={spec.id}//python={worker}") for spec in specs]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the longest files to the front; the rest keeps its order."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Keep Python's garbage collector from going through all that was imported: that took up to a quarter of a test."""
    gc.collect()
    gc.freeze()


# A test's fork inherits the garbage of all tests before it, such as a process group whose threads it doesn't have: its
# collector would wait for them for ever.
os.register_at_fork(after_in_child=gc.freeze)


def pytest_unconfigure() -> None:
    """Let all be collected, or triton complains of leaks."""
    gc.unfreeze()


_MAKE_EMPTY = """
import os, sys
from mlflow import MlflowClient
MlflowClient(f"sqlite:///{sys.argv[1]}.draft").get_experiment("0")
os.rename(f"{sys.argv[1]}.draft", sys.argv[1])
"""


def pytest_configure(config: pytest.Config) -> None:
    """Have MLflow make the empty database that tests copy, once a release, while the tests are collected."""
    empty = Path(config.cache.mkdir("mlflow")) / f"empty-{version('mlflow')}.db"  # type: ignore[union-attr]
    os.environ[empty_database.EMPTY_DATABASE] = str(empty)
    if not hasattr(config, "workerinput") and not empty.exists():
        Path(f"{empty}.draft").unlink(missing_ok=True)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, "-c", _MAKE_EMPTY, str(empty)], **quiet)


@pytest.fixture(autouse=True)
def finish_with_ffcv(request: pytest.FixtureRequest) -> Iterator[None]:
    """numba's functions raise when they are collected; amid another test's `compile` CPython 3.11 gives up on that."""
    yield
    if request.node.get_closest_marker("ffcv"):
        gc.collect()
