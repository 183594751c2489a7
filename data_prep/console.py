"""The console: lines that jobs and commands print, in a form that any terminal can show.

A command never fails because of an encoding, or of a reader that has left. What prints from within a job does so here
(`say`, `say_result`, `say_error`, `pass_on`, `progress_bar`); commands print their results themselves.

How much is said is asked for by two variables, which a job's processes inherit: CONVMLP_QUIET=1 leaves results and
errors, CONVMLP_VERBOSE=1 adds what our loggers note for those who look for a fault (on stderr, without passwords).

Durations, sizes and numbers of things read alike wherever people see them: `duration`, `rough_duration`,
`short_duration`, `stored_size`, `memory_size`, `counted`, `some_of`.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
    "\ufffd": "?",
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
    """Print a line on how a job goes, at once, without passwords in URLs; nothing where only results are asked for.

    Ray forwards a job's output once it is flushed."""
    if not is_quiet():
        say_result(line)


def say_result(line: str) -> None:
    """Print a line that a job is there for, as `say`; also where only results are asked for."""
    print(scrubbed(line), flush=True)


def say_error(message: str) -> None:
    """Print each line of a message as an error on stderr, without passwords in URLs."""
    for line in printable(scrubbed(message)).splitlines():
        print(f"error: {line}", file=sys.stderr)


def pass_on(line: str, *, error: bool) -> None:
    """Print what another process has printed, as it is; `error`: on its stderr."""
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


QUIET, VERBOSE = "CONVMLP_QUIET", "CONVMLP_VERBOSE"
_OURS = ("convmlp", "convmlp_platform", "data_prep")


def verbosity() -> list[str]:
    """Of QUIET and VERBOSE, those that are set."""
    return [name for name in (QUIET, VERBOSE) if os.environ.get(name, "") not in ("", "0")]


def is_quiet() -> bool:
    """Whether only results and errors are asked for."""
    return QUIET in verbosity()


def settle_loggers() -> None:
    """Let our loggers say what is asked for: errors alone, debugging on stderr, or, as they are, warnings."""
    if not verbosity():
        return
    import logging

    class Plain(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return scrubbed(super().format(record))

    verbose = VERBOSE in verbosity()
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
        if verbose and not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(Plain("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
            logger.addHandler(handler)
            logger.propagate = False


def is_terminal() -> bool:
    """Whether stdout is a terminal on which lines can be drawn anew."""
    return (
        sys.stdout is not None and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
    )


def wants_colour() -> bool:
    """Whether stdout is a terminal whose user has nothing against colours (NO_COLOR)."""
    return is_terminal() and not os.environ.get("NO_COLOR")


@dataclass(frozen=True)
class ProgressBar:
    """A bar on the terminal; `is_shown` is False where there is none, and lines are printed in its place."""

    is_shown: bool
    advance: Callable[[float], None]
    """Add to what is done; any thread may."""


@contextlib.contextmanager
def progress_bar(what: str, total: float, unit: str) -> Iterator[ProgressBar]:
    """Draw a bar below all that is printed within the block, and take it away at its end; only on a terminal.

    Args:
        what: is done, a word or two.
        total: of all there is to do; 0: no bar.
        unit: of `total`: "B" for bytes, else a noun in the plural.
    """
    if not is_terminal() or is_quiet() or total <= 0:
        yield ProgressBar(False, lambda amount: None)
        return
    from rich import progress
    from rich.console import Console

    done = (
        progress.DownloadColumn()
        if unit == "B"
        else progress.TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {unit}")
    )
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        done,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield ProgressBar(True, lambda amount: bars.advance(task, amount))


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 05 s`, `3 h 07 min`: what was measured."""
    if seconds < 10.0:
        return f"{seconds:.2f} s"
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def rough_duration(seconds: float) -> str:
    """`42 s`, `12 min`, `3 h 05 min`, `2 d 04 h`: time left, or how long ago something was; 0 s for less."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 36 else f"{hours // 24} d {hours % 24:02} h"


def short_duration(seconds: float) -> str:
    """`42s`, `12m`, `3h05m`, `2d04h`: as `rough_duration`, for a narrow column."""
    return rough_duration(seconds).replace("min", "m").replace(" ", "")


def stored_size(count: float) -> str:
    """`15 kB`, `7.1 MB`, `148.0 GB`: of files, in powers of 1,000 bytes."""
    if count < 1e6:
        return f"{count / 1e3:,.0f} kB"
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def memory_size(count: float) -> str:
    """`87.5 MiB`, `3.72 GiB`: of memory, in powers of 1,024 bytes."""
    return f"{count / 2**30:,.2f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:,.1f} MiB"


def counted(number: int | str, noun: str) -> str:
    """`1 worker`, `1,024 workers`, `1 to 2 workers`."""
    shown = number if isinstance(number, str) else f"{number:,}"
    return f"{shown} {noun}{'s' * (shown != '1')}"


def some_of(texts: Sequence[str], most: int, between: str = ", ") -> str:
    """The first of many, and how many more there are: `a, b, c and 1,024 more`."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return between.join(texts[:most]) + more


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
