"""One driver a run: the living keep their lease, the dead don't. How it is kept:
tests/data_prep/storage/test_locks.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convmlp_platform.errors import LaunchError
from convmlp_platform.runs.find_run import OF_RUNS
from convmlp_platform.runs.lease import NAME, result_lease, run_lease
from data_prep.storage import locks


def test_a_second_driver_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lease(run).hold():
        for take in (lambda: run_lease(run).hold().__enter__(), lambda: run_lease(run).refuse_if_held()):
            with pytest.raises(LaunchError, match=rf"run 'run' .* process {os.getpid()} on "):
                take()
    run_lease(run).refuse_if_held()
    assert not (run / NAME).exists() and NAME in OF_RUNS


def test_a_killed_driver_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom data_prep.storage.locks import Lock\n"
        "assert Lock(Path(sys.argv[1])).try_take()\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / NAME)], check=True)
    assert (tmp_path / NAME).exists()
    run_lease(tmp_path).refuse_if_held()
    began = time.monotonic()
    with run_lease(tmp_path).hold():
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < locks.STALE_S / 2


def test_a_folder_that_cant_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=r"checkpoint\.path: can't write to .*file/run: Not a directory"):
        run_lease(tmp_path / "file" / "run").hold().__enter__()


def test_two_evaluations_of_one_name_dont_write_the_same_result(tmp_path: Path) -> None:
    result = tmp_path / "results" / "digits"
    with result_lease(result).hold():
        result.mkdir()
        result.rename(tmp_path / "results" / "old")  # as the writer of a result does
        with pytest.raises(
            LaunchError, match=rf"result 'digits' is being written .* process {os.getpid()} on "
        ):
            result_lease(result).hold().__enter__()
    with result_lease(result).hold():
        pass
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["old"]
