"""The page of a run: what it says, in any width; live in a terminal, as lines in a pipe; how it ends."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole
from run_folders import Story, died, finished, stopped

from convmlp_platform.cli.main import main
from convmlp_platform.health.events import RunEvents
from convmlp_platform.overview import watch_run
from convmlp_platform.overview.run_page import RunPage, page_of
from convmlp_platform.overview.run_reader import RunReader
from convmlp_platform.overview.watch_run import drawn, plain_lines
from convmlp_platform.runs.lease import run_lease
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import Journal, MetricsRecord
from convmlp_platform.training.guard.incidents import open_incident
from data_prep.console import printable

NOW = 1_790_000_000.0
ROOT = Path(__file__).parents[3]
UNTIL_S = 60.0


def page(run: Path, now: float = NOW) -> RunPage:
    return page_of(RunReader(run), run.name, now)


def test_the_page_says_it_all(tmp_path: Path) -> None:
    run = Story(NOW, pid=os.getpid(), causes=("hardware", "hang"), workers=9).write(tmp_path / "run")
    open_incident(run / "incidents", "spike", 311, {"message": "loss 9.1 is 8 deviations too high"})
    (run / "registered.json").write_text('{"uri": "models:/digits/3"}')
    with run_lease(run).hold():
        lines = plain_lines(page(run))
    text = "\n".join(lines)
    assert lines[0] == "run: running"
    assert "progress     step 420 of 1,000, 42.0 %, 5 min left" in text
    assert "training     loss 1.3269  gradient norm 1.25  lr 5.00e-04  1,823 img/s  data wait 2%" in text
    assert "evaluations  step 400: top1 54.00 %  loss 1.5000\n               step 300: top1 53.00 %" in text
    assert "best         top1 54.00 % after step 400" in text
    assert "workers      9 on cuda, attempt 1, start 3: gpu-00 x 8, gpu-01 x 1" in text
    assert "restarts: 2 (hardware 1, hang 1)" in text
    assert "% useful steps, " in text and "% waiting for data" in text
    assert "hang: rank 1 on gpu-00: hang" in text and "hardware: rank 1 on gpu-00: hardware" in text
    assert "spike at step 311: loss 9.1 is 8 deviations too high" in text
    assert "checkpoints  step 400 (10 s ago), step 300 (60 s ago), step 200" in text
    assert "registered   models:/digits/3" in text


def test_a_page_of_next_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert plain_lines(page(tmp_path / "run")) == [
        "run: waiting (has not begun)",
        "  progress     no step yet",
    ]


def test_checkpoints_elsewhere_are_those_that_the_journal_tells_of(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", NOW)
    for folder in (run / "checkpoints").iterdir():
        folder.rmdir()
    assert "checkpoints  step 1,000 (" in "\n".join(plain_lines(page(run)))


@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_drawn_page_fits_its_terminal(tmp_path: Path, width: int) -> None:
    run = died(tmp_path / "run", NOW)
    console = RichConsole(width=width, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(drawn(page(run), console))
    lines = printable(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("run  died  hardware: rank 1")
    assert any("420 of 1,000" in line for line in lines)


def test_no_colour_where_none_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = RichConsole(width=80, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(drawn(page(died(tmp_path / "run", NOW)), console))
    assert "\x1b[3" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("make", "code"), [(finished, 0), (died, 1), (stopped, 3)])
def test_the_exit_code_is_how_it_ended(
    tmp_path: Path, make: Callable[..., Path], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path / "run", NOW)
    for words in ([], ["--once"]):
        assert main(["watch", str(run), *words]) == code
        assert capsys.readouterr().out.startswith(f"run: {make.__name__}")


def test_one_look_at_a_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Story(time.time(), pid=os.getpid()).write(tmp_path / "run")
    with run_lease(run).hold():
        assert main(["watch", str(run), "--once"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_run_that_cant_be_read_is_no_finished_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path / "run", NOW)
    (run / "run.json").write_text("{")
    assert main(["watch", str(run)]) == 2
    assert "run: damaged (run.json is damaged" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "rum")]) == 2
    assert "did you mean" in capsys.readouterr().err


def step_on(run: Path, step: int) -> None:
    """The run logs another step."""
    values = {"train/loss": 0.123, "train/lr": 1e-4, "train/images_per_second": 99.0, "train/data_wait": 0.5}
    journal = Journal(journal_path(run))
    journal.append(MetricsRecord(step=step, values=values))
    journal.close()


def end(run: Path, code: int = 0) -> None:
    """The run's driver ends."""
    RunEvents(run / "events.jsonl").append("driver_ended", exit_code=code)


def test_in_a_pipe_the_news_come_as_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Story(time.time(), pid=os.getpid()).write(tmp_path / "run")
    lease = run_lease(run).hold()
    acts: Iterator[Callable[[], Any]] = iter(
        [
            lambda: step_on(run, 430),
            lambda: None,
            lambda: open_incident(run / "incidents", "spike", 431, {"message": "too high"}),
            lambda: (end(run), lease.__exit__(None, None, None)),
        ]
    )
    monkeypatch.setattr(watch_run, "sleep", lambda seconds: next(acts)())
    lease.__enter__()
    assert main(["watch", str(run), "--interval", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("  last sign"))
    told = lines[begin + 1 :]
    assert len(told) == 3
    assert told[0].startswith("step 430 of 1,000, 43.0 %, ")
    assert told[0].endswith(": loss 0.1230  lr 1.00e-04  99 img/s  data wait 50%")
    assert told[1:] == ["incident: spike at step 431: too high", "run: finished"]


class Terminal:
    """`convmlp WORDS` in a terminal of 80 x 30; `text` is what it has shown, without control sequences."""

    def __init__(self, *words: str, **environment: str) -> None:
        own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
        path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
        env = (
            os.environ
            | {"TERM": "xterm-256color", "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
            | environment
        )
        env.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "convmlp_platform", *words],
            stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True,
            # Whoever was started in the background, as tests may be, ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        os.close(theirs)
        self.raw, self._own = b"", own
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                content = os.read(self._own, 1 << 16)
            except OSError:  # nobody has the other end any more
                return
            if not content:
                return
            self.raw += content

    @property
    def text(self) -> str:
        return printable(self.raw.decode(errors="replace"))

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + UNTIL_S
        while text not in self.text:
            assert time.monotonic() < until and self.process.poll() is None, self.text
            time.sleep(0.05)

    def ended(self) -> int:
        code = self.process.wait(UNTIL_S)
        self._thread.join(UNTIL_S)
        os.close(self._own)
        return code


@contextmanager
def watched(run: Path) -> Iterator[Terminal]:
    terminal = Terminal("watch", str(run), "--interval", "0.2")
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()


def test_in_a_terminal_it_is_live_and_stays_when_the_run_ends(tmp_path: Path) -> None:
    run = Story(time.time(), pid=os.getpid()).write(tmp_path / "run")
    with ExitStack() as driver, watched(run) as terminal:
        driver.enter_context(run_lease(run).hold())
        terminal.wait_for("step 420 of 1,000")
        assert b"\x1b[?1049h" in terminal.raw and "━" in terminal.text
        step_on(run, 430)
        terminal.wait_for("step 430 of 1,000, 43.0 %")
        end(run)
        driver.close()
        assert terminal.ended() == 0
    left = printable(terminal.raw.rpartition(b"\x1b[?1049l")[2].decode())
    assert left.lstrip().startswith("run  finished") and "step 430 of 1,000" in left
    assert "Ctrl-C" not in left and "Ctrl-C leaves; the run goes on" in terminal.text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_leaves_gets_the_terminal_back(tmp_path: Path, number: int, code: int) -> None:
    run = Story(time.time(), pid=os.getpid()).write(tmp_path / "run")
    with run_lease(run).hold(), watched(run) as terminal:
        terminal.wait_for("Ctrl-C leaves")
        terminal.process.send_signal(number)
        assert terminal.ended() == code
    rest = terminal.raw.rpartition(b"\x1b[?1049l")
    assert rest[1] and printable(rest[2].decode()).strip() == "" and b"\x1b[?25h" in terminal.raw
