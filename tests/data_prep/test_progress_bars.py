"""Bars where stdout is a terminal, and nothing but the lines of ever where it is none."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prepared import digits

from data_prep import copy_dataset as copying
from data_prep import prepare as preparing
from data_prep.config import DigitsSource, OutputConfig, PrepareConfig
from data_prep.console import QUIET, ProgressBar, printable, progress_bar, say
from data_prep.verify import verify


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def become(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Stdout is a terminal of 100 columns from now on; before a test begins pytest takes it away again."""
    found = Terminal()
    monkeypatch.setattr(sys, "stdout", found)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "100"), (QUIET, "")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return found


def test_a_bar_shows_how_far_it_is_and_lines_come_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become(monkeypatch)
    with progress_bar("writing shards", 1000, "images") as bar:
        assert bar.is_shown
        bar.advance(250)
        say("a line amid it")
        bar.advance(750)
    text = printable(terminal.getvalue())
    assert "writing shards" in text and "a line amid it\n" in text and "1,000/1,000 images" in text
    assert terminal.getvalue().endswith("\x1b[2K")  # it is taken away


def test_bytes_and_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with progress_bar("copying", 5e6, "B") as bar:
        bar.advance(5e6)
    assert "5.0/5.0 MB" in terminal.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.getvalue())


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", ""), (QUIET, "1")])
def test_no_bar_where_none_can_be_or_is_wanted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    terminal = become(monkeypatch)
    monkeypatch.setenv(name, value)
    with progress_bar("copying", 10, "files") as bar:
        assert not bar.is_shown
        bar.advance(10)
    assert terminal.getvalue() == ""


def test_no_bar_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("copying", 10, "files") as bar:
        assert not bar.is_shown
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def copied(tmp_path: Path, name: str) -> list[str]:
    lines: list[str] = []
    copying.copy_dataset(str(digits("webdataset")), str(tmp_path / name), progress=lines.append, threads=1)
    return lines


def test_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = become(monkeypatch)
    monkeypatch.setattr(copying, "_SECONDS_BETWEEN_LINES", 0.0)
    (line,) = copied(tmp_path, "a")
    assert "copying" in terminal.getvalue() and "MB" in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    lines = copied(tmp_path, "b")
    assert len(lines) > 1 and lines[-1] == line


def test_bytes_that_are_sent_again_count_once(tmp_path: Path) -> None:
    place = copying.place_of(str(digits("webdataset")))
    manifest = copying.parse_manifest(place.read("manifest.json"), "here")
    file = next(one for one in copying.dataset_files(manifest) if one.size)
    sent: list[float] = []
    job = copying._Copy(place, place, False, print, [file], ProgressBar(True, sent.append))
    assert file.size is not None
    pieces = job._checked(file, file.size)
    next(pieces)
    assert sum(sent) > 0
    pieces.close()  # type: ignore[attr-defined]
    assert sum(sent) == 0
    for _ in job._checked(file, file.size):
        pass
    assert sum(sent) == file.size


def test_verifying_and_preparing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_lines: Callable[[str], list[str]],
) -> None:
    terminal = become(monkeypatch)
    monkeypatch.setattr(preparing, "_SECONDS_BETWEEN_LINES", 0.0)
    assert verify(digits("webdataset")).ok
    assert "verifying" in terminal.getvalue()
    (line,) = [line for line in make_lines("a") if "shards, " in line]
    assert "writing shards" in terminal.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    lines = [line for line in make_lines("b") if "shards, " in line]
    assert len(lines) > 1 and lines[-1].split(", ")[:2] == line.split(", ")[:2]


@pytest.fixture
def make_lines(tmp_path: Path) -> Callable[[str], list[str]]:
    """Prepares the digits into a folder; returns the lines on how it went."""

    def make(name: str) -> list[str]:
        lines: list[str] = []
        output = OutputConfig(path=tmp_path / name, formats=("webdataset",), samples_per_shard=256)
        config = PrepareConfig(source=DigitsSource(), output=output)
        preparing.prepare(config, progress=lines.append)
        return lines

    return make
