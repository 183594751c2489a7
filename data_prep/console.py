"""The console: lines that jobs and commands print, in a form that any terminal can show.

A command never fails because of an encoding, or of a reader that has left. What prints from within a job does so here
(`say`, `say_error`, `pass_on`); commands print their results themselves.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Callable

from data_prep.storage.urls import scrubbed

PLAIN = {
    "→": "->",
    "←": "<-",
    "↔": "<->",
    "…": "...",
    "×": "x",
    "·": "*",
    "²": "^2",
    "µ": "u",
    "Σ": "sum",
    "ᵢ": "_i",
    "±": "+-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "–": "-",
    "—": "-",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "✓": "yes",
    "✗": "no",
}
"""Signs that our lines use, in ASCII. A letter isn't replaced: a name would become another one."""

PIPE_CLOSED = 141
"""Exit code where the reader of our output has left: as the shell says it, 128 + SIGPIPE."""

_HANDLER = "convmlp-plain"
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign) or _escaped(sign) for sign in signs), error.end


def _escaped(sign: str) -> str:
    """As in Python's own text; a byte of a file's name that isn't UTF-8 as that byte."""
    if 0xDC80 <= ord(sign) <= 0xDCFF:
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("ascii", "backslashreplace").decode()


def say(line: str) -> None:
    """Print a line of a job at once, without passwords in URLs. Ray forwards a job's output once it is flushed."""
    print(scrubbed(line), flush=True)


def say_error(message: str) -> None:
    """Print each line of a message as an error on stderr, without passwords in URLs."""
    for line in printable(scrubbed(message)).splitlines():
        print(f"error: {line}", file=sys.stderr)


def pass_on(line: str, *, error: bool) -> None:
    """Print what another process has printed, as it is; `error`: on its stderr."""
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


def adapt_streams() -> None:
    """Let stdout and stderr of this process take every character: one that they can't show becomes plain ASCII.

    That concerns terminals that aren't UTF-8 (LC_ALL=C, PYTHONIOENCODING=ascii, cp1252), and on all terminals file
    names that aren't text.
    """
    codecs.register_error(_HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)


def printable(text: str) -> str:
    """The text without colours and other control sequences, which a library has put into its message."""
    return _CONTROL.sub("", text)


def guarded(work: Callable[[], int]) -> int:
    """Run a command and flush its output; returns its exit code.

    A reader that has left (`| head`) is no error: the code is 141, and nothing is said. Output that can't be written
    (its disk is full) is one line on stderr, and 2.
    """
    adapt_streams()
    try:
        code = work()
        _flush()
    except BrokenPipeError:
        _silence()
        return PIPE_CLOSED
    except OSError:
        if (reason := _unwritable()) is None:
            raise
        with contextlib.suppress(OSError):
            print(f"error: stdout: can't be written: {reason}", file=sys.stderr)
        _silence()
        return 2
    return code


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the shell closed it: `>&-`
            stream.flush()


def _unwritable() -> str | None:
    """Returns the reason why stdout or stderr takes no output, tried with an empty line; None where both do."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                os.write(stream.fileno(), b"\n")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _silence() -> None:
    """Both streams are flushed once more at exit: let what they hold go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
