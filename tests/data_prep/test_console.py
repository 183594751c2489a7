"""What jobs print: at once, without passwords, errors on stderr."""

from __future__ import annotations

import io
import sys

import pytest

from data_prep.console import (
    counted,
    duration,
    memory_size,
    pass_on,
    rough_duration,
    say,
    say_error,
    short_duration,
    stored_size,
)


class Counting(io.StringIO):
    """Counts how often it is flushed."""

    flushed = 0

    def flush(self) -> None:
        """Count."""
        self.flushed += 1


def test_a_line_is_there_at_once_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Counting()
    monkeypatch.setattr(sys, "stdout", stream)
    say("read s3://me:secret@bucket/x?token=1")
    assert (stream.getvalue(), stream.flushed) == ("read s3://bucket/x\n", 1)


def test_each_line_of_an_error_is_one_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say_error("\x1b[31mno http://me:secret@host/x\x1b[0m\ntry again")
    assert capsys.readouterr() == ("", "error: no http://host/x\nerror: try again\n")


def test_what_another_process_printed_is_passed_on_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    pass_on("http://host/x?page=1 \x1b[1mbold", error=False)
    pass_on("Traceback", error=True)
    assert capsys.readouterr() == ("http://host/x?page=1 \x1b[1mbold\n", "Traceback\n")


@pytest.mark.parametrize(
    ("seconds", "exact", "rough", "short"),
    [
        (-1.0, "-1.00 s", "0 s", "0s"),
        (0.42, "0.42 s", "0 s", "0s"),
        (42.4, "42.4 s", "42 s", "42s"),
        (89, "1 min 29 s", "89 s", "89s"),
        (185, "3 min 05 s", "3 min", "3m"),
        (7800, "2 h 10 min", "2 h 10 min", "2h10m"),
        (180_000, "50 h 00 min", "2 d 02 h", "2d02h"),
        (9_000_000, "2,500 h 00 min", "104 d 04 h", "104d04h"),
    ],
)
def test_durations(seconds: float, exact: str, rough: str, short: str) -> None:
    assert (duration(seconds), rough_duration(seconds), short_duration(seconds)) == (exact, rough, short)


def test_sizes_and_numbers_of_things() -> None:
    assert [stored_size(count) for count in (15_400, 7_140_000, 148e9)] == ["15 kB", "7.1 MB", "148.0 GB"]
    assert [memory_size(count) for count in (300_000, 4 << 30)] == ["0.3 MiB", "4.00 GiB"]
    found = [counted(number, "worker") for number in (0, 1, 1024, "1 to 2", "1")]
    assert found == ["0 workers", "1 worker", "1,024 workers", "1 to 2 workers", "1 worker"]
