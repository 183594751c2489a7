"""SIGKILL at the job's commit points, then the same job again: the bytes of an undisturbed run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prep_helpers import make_folder, prepare_folder, snapshot

from data_prep.verify import verify

# Kills itself at the n-th call of the functions that change what is on disk: before a rename, after it,
# while a shard is half written, while an old dataset is deleted.
KILLED_JOB = """
import os, signal, sys
from pathlib import Path

kind, nth, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[5])
source, output = Path(sys.argv[3]), Path(sys.argv[4])
calls = 0

def killing(function, after=False):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if after:
            function(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return None if after else function(*args, **kwargs)
    return wrapped

from data_prep.writers import webdataset_writer as webdataset
match kind:
    case "before rename":
        Path.replace = killing(Path.replace)
    case "after rename":
        Path.replace = killing(Path.replace, after=True)
    case "in a shard":
        webdataset.WebDatasetWriter._append = killing(webdataset.WebDatasetWriter._append)
    case "at unlink":
        Path.unlink = killing(Path.unlink, after=True)

from data_prep.config import OutputConfig, PrepareConfig
from data_prep.config import ImageFolderSource
from data_prep.prepare import prepare

prepare(PrepareConfig(
    source=ImageFolderSource(path=source),
    output=OutputConfig(path=output, samples_per_shard=4, overwrite=True),
    shuffle_seed=seed,
))
"""


def run_killed_job(kind: str, nth: int, source: Path, output: Path, seed: int = 0) -> None:
    command = [sys.executable, "-c", KILLED_JOB, kind, str(nth), str(source), str(output), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == -signal.SIGKILL, f"was not killed: {result.stdout}{result.stderr}"


@pytest.mark.parametrize(
    ("kind", "nth"),
    [
        ("before rename", 3),  # the first shard is in place in one format, in the other it is not
        ("in a shard", 10),
        ("before rename", 29),  # all but the manifest
        ("after rename", 29),  # the manifest, records not yet swept
    ],
)
def test_run_again_after_a_kill(tmp_path: Path, kind: str, nth: int) -> None:
    source = make_folder(tmp_path / "source")
    output = tmp_path / "killed" / "out"
    run_killed_job(kind, nth, source, output)
    interrupted = snapshot(output)
    finished = (output / "manifest.json").exists()
    assert finished == (kind == "after rename" and nth == 29)

    manifest = prepare_folder(source, output)
    prepare_folder(source, tmp_path / "undisturbed" / "out")
    assert snapshot(output) == snapshot(tmp_path / "undisturbed" / "out")
    assert interrupted != snapshot(output)
    assert verify(output).ok
    assert manifest.num_classes == 3


def test_finished_shards_are_not_written_again(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    output = tmp_path / "out"
    run_killed_job("before rename", 27, source, output)
    written = {path: path.stat().st_mtime_ns for path in (output / "webdataset").iterdir()}
    damaged = output / "webdataset" / "train-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    prepare_folder(source, output)
    rewritten = {path.name for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert rewritten == {"train-000001.tar", "train-000001.index.arrow"}
    assert verify(output).ok


def test_a_killed_replacement_is_finished_by_the_next_run(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    output = tmp_path / "killed" / "out"
    prepare_folder(source, output)
    run_killed_job("at unlink", 4, source, output, seed=1)  # the manifest and some shards are gone
    assert not (output / "manifest.json").exists()
    prepare_folder(source, output, shuffle_seed=1)
    prepare_folder(source, tmp_path / "fresh" / "out", shuffle_seed=1)
    assert snapshot(output) == snapshot(tmp_path / "fresh" / "out")


def test_another_job_over_an_interrupted_one_starts_afresh(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source")
    output = tmp_path / "killed" / "out"
    run_killed_job("before rename", 20, source, output)
    prepare_folder(source, output, samples_per_shard=7, formats=("ffcv",))
    prepare_folder(source, tmp_path / "fresh" / "out", samples_per_shard=7, formats=("ffcv",))
    assert snapshot(output) == snapshot(tmp_path / "fresh" / "out")
