"""`convmlp runs`, `--version`, `-q`, `-v` and `convmlp completion`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from run_folders import died, finished

from convmlp_platform.cli import main as cli
from convmlp_platform.cli.common import all_commands, arguments_of
from convmlp_platform.cli.completion import script
from convmlp_platform.cli.main import main
from convmlp_platform.health.events import RunEvents
from data_prep.console import QUIET, VERBOSE, say, say_result, settle_loggers


@pytest.fixture(autouse=True)
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The root is a folder of the test; what `-q` and `-v` set goes with it."""
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    for name in (QUIET, VERBOSE):
        monkeypatch.setenv(name, "")
    yield
    for logger in (logging.getLogger(name) for name in ("convmlp_platform", "data_prep", "convmlp")):
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def test_runs_below_the_root_in_a_place_and_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    finished(tmp_path / "runs" / "old", now - 5000)
    died(tmp_path / "runs" / "sweep" / "new", now - 100)
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["run", "state"],
        ["sweep/new", "died"],
        ["old", "finished"],
    ]
    assert lines[1].endswith("launch.restarts.hardware (=3) is used up")  # no terminal: nothing is cut
    for place in ("sweep", str(tmp_path / "runs" / "sweep"), "sweep/new"):
        assert main(["runs", place]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["run", "new"]


def test_json_is_an_object_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "runs" / "a", time.time() - 60)
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "run.json").write_text("{")
    assert main(["runs", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["name"], first["state"], first["step"], first["steps"]) == ("a", "finished", 1000, 1000)
    assert first["seen_s"] == pytest.approx(58.0, abs=30.0)
    assert (second["name"], second["state"], second["step"]) == ("b", "damaged", None)


def test_no_runs_and_no_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == f"no runs below {tmp_path / 'runs'}\n"
    assert main(["runs", "nowhere"]) == 2
    assert "no folder of runs nowhere: looked for" in capsys.readouterr().err
    assert main(["watch", "nowhere", "--interval", "0"]) == 2


def test_what_is_no_run_is_not_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for trial in ("lr-1", "lr-2"):
        finished(tmp_path / "runs" / "sweep" / trial, time.time())
    (tmp_path / "runs" / "sweep" / "sweep.json").write_text('{"trials": ["lr-1", "lr-2"]}')
    assert main(["watch", "sweep"]) == 2
    assert "sweep is no run's folder: it holds sweep/lr-1, sweep/lr-2" in capsys.readouterr().err
    assert main(["watch", "sweep/lr-1", "--once"]) == 0
    (tmp_path / "runs" / "empty").mkdir()
    assert main(["watch", "empty"]) == 2
    assert capsys.readouterr().err.endswith("empty is no run's folder\n")


def test_a_terminal_has_colours_unless_none_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    died(tmp_path / "runs" / "a", time.time())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["runs"]) == 0
    text = capsys.readouterr().out
    assert "\x1b[31mdied" in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["runs"]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 70


def test_the_version_names_code_and_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("convmlp ") and f", torch {version('torch')}, Python 3." in line
    if shutil.which("git") and (Path(__file__).parents[3] / ".git").exists():
        assert " (commit " in line


def test_quiet_leaves_results_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "runs"]) == 0
    assert capsys.readouterr().out.startswith("no runs")
    say("how it goes")
    say_result("what came of it")
    assert capsys.readouterr().out == "what came of it\n"
    assert main(["runs", "nowhere"]) == 2
    assert "error:" in capsys.readouterr().err
    assert main(["runs", "-v"]) == 0  # the last word counts
    say("how it goes")
    assert capsys.readouterr().out.endswith("how it goes\n")


@pytest.mark.parametrize("words", [["-v", "runs"], ["runs", "--verbose"]])
def test_verbose_lets_our_loggers_speak(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    RunEvents(tmp_path / "events.jsonl").append("driver_started", pid=1, uri="http://me:secret@host/")
    told = capsys.readouterr().err
    assert "convmlp_platform.health.events: driver_started {'pid': 1, " in told and "secret" not in told


def test_quiet_processes_of_a_job_warn_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("convmlp_platform")
    monkeypatch.setenv(QUIET, "1")
    settle_loggers()
    assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)


def test_every_command_takes_both() -> None:
    """If argparse keeps a parser's arguments elsewhere, `-q`, `-v` and completion are what depends on it
    (`cli.common.arguments_of`)."""
    commands = dict(all_commands(cli._parser()[0]))
    assert {("run",), ("data",), ("data", "verify"), ("checkpoints", "list")} <= commands.keys()
    for words, parser in commands.items():
        options = {name for action in arguments_of(parser) for name in action.option_strings}
        assert {"-q", "--quiet", "-v", "--verbose"} <= options, words


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers on TAB after these words, the last of which is begun."""
    (tmp_path / "convmlp.bash").write_text(script("bash", cli._parser()[0]))
    code = (
        f"source {tmp_path / 'convmlp.bash'}; cd {tmp_path / 'here'}; "
        'COMP_WORDS=(convmlp "$@"); COMP_CWORD=$#; _convmlp; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", *words], env=os.environ, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_tab_key(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "job.yaml").touch()
    for name in ("digits", "sweep/lr-1"):
        finished(tmp_path / "runs" / name, time.time())
    assert completed(tmp_path, "wa") == ["watch"]
    assert completed(tmp_path, "watch", "d") == ["digits"]
    assert completed(tmp_path, "watch", "sw") == ["sweep/lr-1"]
    assert completed(tmp_path, "checkpoints", "list", "d") == ["digits"]
    assert completed(tmp_path, "checkpoints", "v") == ["verify"]
    assert completed(tmp_path, "data", "ledger", "--d") == ["--dataset"]
    assert completed(tmp_path, "run", "j") == ["job.yaml"]
    assert completed(tmp_path, "run", "job.yaml", "--s") == ["--set"]
    assert completed(tmp_path, "completion", "z") == ["zsh"]
    assert completed(tmp_path, "runs", "--ml") == ["--mlflow"]
    assert completed(tmp_path, "--vers") == ["--version"]


def test_a_script_for_zsh(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit\ncomplete -o filenames -F _convmlp convmlp\n" in capsys.readouterr().out
