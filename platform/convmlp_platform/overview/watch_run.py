"""`convmlp watch`: a run's page in the terminal, anew every few seconds, until the run ends; it only reads files.

Where there is no terminal, plain lines: the page once, then what is new, then how the run ended.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from time import sleep, time
from types import FrameType
from typing import TYPE_CHECKING

from convmlp_platform.overview.run_page import RunPage, evaluation_line, page_of, training_line
from convmlp_platform.overview.run_reader import RunReader
from convmlp_platform.overview.runs_table import COLOUR_NAMES
from convmlp_platform.runs.run_state import GOING_ON
from data_prep.console import is_terminal, say_result

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

EXIT_CODES = {"finished": 0, "died": 1, "stopped": 3, "damaged": 2, "hidden": 2}
"""By the state in which a watch ended; 0 where only one look was asked for and the run goes on."""
_LABEL, _BAR = 13, 72


def watch(run: Path, name: str, *, once: bool, interval: float) -> int:
    """Show a run until it ends; returns the exit code, see `EXIT_CODES`.

    Args:
        once: show it once, in plain lines.
        interval: seconds between two looks.

    Raises:
        KeyboardInterrupt: the user had enough.
    """
    reader = RunReader(run)
    page = page_of(reader, name, time())
    if once or not is_terminal():
        say_result("\n".join(plain_lines(page)))
        if not once:
            page = _tell(reader, page, interval)
    else:
        page = _show(reader, page, interval)
    return EXIT_CODES.get(page.overview.state, 0)


def plain_lines(page: RunPage) -> list[str]:
    """The page as text."""
    lines = [page.headline, f"  {'progress':<{_LABEL}}{page.progress}"]
    for label, words in page.rows:
        lines += [
            f"  {label if not number else '':<{_LABEL}}{word}".rstrip() for number, word in enumerate(words)
        ]
    return lines


def _tell(reader: RunReader, page: RunPage, interval: float) -> RunPage:
    """Print what is new, a line each, until the run ends."""
    news = _News(reader)
    name, told = page.overview.name, _state(page)
    while page.overview.state in GOING_ON:
        sleep(interval)
        reader.read()
        page = page_of(reader, name, time())
        for line in news.lines(page):
            say_result(line)
        if _state(page) != told:
            told = _state(page)
            say_result(page.headline)
    return page


def _state(page: RunPage) -> tuple[str, str]:
    """The state and its note; of silence, which gets longer and longer, without that."""
    state = page.overview.state
    return state, "" if state == "silent" else page.overview.note


class _News:
    """What a reader has read since the last time."""

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._told = self._counts()

    def _counts(self) -> tuple[int, int, int]:
        reader = self._reader
        newest = reader.journal.training[-1].time if reader.journal.training else 0
        return newest, len([line for line in reader.evaluations if line.metrics]), len(reader.incidents)

    def lines(self, page: RunPage) -> Iterator[str]:
        before, self._told = self._told, self._counts()
        if self._told[0] != before[0]:
            yield f"{page.progress}: {training_line(self._reader.journal.training[-1])}"
        for line in [line for line in self._reader.evaluations if line.metrics][before[1] :]:
            yield f"evaluation after step {line.step:,}: {evaluation_line(line.metrics)}"
        for incident in self._reader.incidents[before[2] :]:
            yield f"incident: {incident.kind} at step {incident.step:,}: {incident.facts.get('message', '')}"


def _show(reader: RunReader, page: RunPage, interval: float) -> RunPage:
    """Draw the page over itself until the run ends, then leave it on the terminal."""
    from rich.console import Console
    from rich.live import Live

    signal.signal(signal.SIGTERM, _leave)
    console = Console(highlight=False, emoji=False)
    name = page.overview.name
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(drawn(page, console), refresh=True)
            if page.overview.state not in GOING_ON:
                break
            sleep(interval)
            reader.read()
            page = page_of(reader, name, time())
    console.print(drawn(page, console, ended=True))
    return page


def _leave(number: int, _frame: FrameType | None) -> None:
    """End in a way that gives the terminal back as it was."""
    raise SystemExit(128 + number)


def drawn(page: RunPage, console: RichConsole, *, ended: bool = False) -> RenderableType:
    """The page for a terminal: a headline, a bar, and a table of rows."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    found = page.overview
    note = f"  {found.note}" if found.note else ""
    head = Text.assemble(
        (found.name, "bold"), "  ", (found.state, COLOUR_NAMES.get(found.state, "default")), note
    )
    top = Table.grid()  # in rows: a bar alone ends no line
    top.add_row(head)
    if found.step is not None and found.steps:
        top.add_row(ProgressBar(total=found.steps, completed=found.step, width=min(console.width, _BAR)))
    top.add_row(Text(page.progress))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, lines in page.rows:
        grid.add_row(label, Text("\n".join(lines)))
    hint = [] if ended else [Text("Ctrl-C leaves; the run goes on", style="dim")]
    return Group(top, Text(""), grid, Text(""), *hint)
