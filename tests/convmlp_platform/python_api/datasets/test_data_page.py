"""The training loops of docs/data.md, run as they stand there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from doc_code import python_blocks, run_code
from prepared import digits

HEADING = "In your own training loop"


def block_with(word: str) -> str:
    (found,) = [code for code in python_blocks("data.md", HEADING) if word in code]
    assert len(found.splitlines()) <= 22
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data/digits, the current one."""
    shutil.copytree(digits("webdataset", "ffcv"), tmp_path / "data/digits")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # of the cache
    return tmp_path


@pytest.mark.slow
def test_the_loop_over_webdataset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_learning(block_with("as_webdataset"), capsys)


@pytest.mark.slow
@pytest.mark.ffcv
def test_the_loop_over_ffcv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ffcv", reason="ffcv is not installed (pip install 'convmlp-platform[ffcv]')")
    expect_learning(block_with("as_ffcv_loader"), capsys)
    assert [file.name.rpartition("-")[0] for file in (folder / ".cache/convmlp/ffcv").iterdir()] == [
        "digits-train"
    ]


def expect_learning(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_code(code, "data.md")
    assert names["loss"].item() < 2.2  # chance is 2.3
    assert "epoch 1: loss" in capsys.readouterr().out
