"""What jobs print: at once, without passwords, errors on stderr."""

from __future__ import annotations

import io
import sys

import pytest

from data_prep.console import pass_on, say, say_error


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
