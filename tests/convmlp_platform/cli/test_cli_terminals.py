"""Any terminal shows what a command prints: other encodings, closed pipes, full disks, messages with colours."""

# ruff: noqa: RUF001

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prepared import digits

from convmlp_platform.cli import main
from convmlp_platform.cli.common import fail
from convmlp_platform.errors import ConfigError
from data_prep.console import PLAIN, adapt_streams, printable

ROOT = Path(__file__).parents[3]
SIGNS = "images → 3 × 224 …, é, \udce9"


def commands(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups included."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield words
    for group in groups:
        for name, own in group.choices.items():
            yield from commands(own, (*words, name))


def convmlp(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    env |= {"PYTHONPATH": path, "CONVMLP": f"{sys.executable} -m convmlp_platform"} | environment
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", list(commands(main._parser()[0])), ids=" ".join)
def test_every_command_prints_on_any_terminal(
    words: tuple[str, ...], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command comes to its terminal through the same door, here with a body that prints and then fails."""

    def body(_arguments: argparse.Namespace) -> int:
        print(SIGNS, flush=True)
        raise ConfigError(SIGNS)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda *_: argparse.Namespace(call=body))
    streams = [io.BytesIO(), io.BytesIO()]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding))
    assert main.main(list(words)) == 2
    shown = {
        "ascii": r"images -> 3 x 224 ..., \xe9, \xe9",
        "cp1252": r"images -> 3 × 224 …, é, \xe9",
        "latin-1": r"images -> 3 × 224 ..., é, \xe9",
        "utf-8": r"images → 3 × 224 …, é, \xe9",
    }[encoding]
    assert streams[0].getvalue().decode(encoding) == f"{shown}\n"
    assert streams[1].getvalue().decode(encoding) == f"error: {shown}\n"


def test_every_sign_of_our_lines_has_a_plain_form() -> None:
    """µ, × and the like in the product's texts; a sign that is new here needs its line in `PLAIN`."""
    found = set()
    for folder in ("convmlp", "data_prep", "platform"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name == "console.py":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found |= {
                        sign for sign in node.value if not sign.isascii() and not "\ud800" <= sign <= "\udfff"
                    }
    assert found <= PLAIN.keys()
    assert all(plain.isascii() for plain in PLAIN.values())


def test_a_check_in_an_ascii_terminal_is_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job = str(ROOT / "jobs" / "pretrain_digits.yaml")
    assert main.main(["check", job, "--set", f"data.path={digits()}", "--set", "launch.num_workers=1"]) == 0
    lines = stream.getvalue().decode("ascii").splitlines()
    assert lines[-1] == "no problems found"
    assert any(line.startswith("  data ") and line.endswith("...") for line in lines)


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("$CONVMLP schema | head -n 1", "141 0", ""),
        ("$CONVMLP check nowhere.yaml 2>&1 | true", "141 0", ""),
        ("$CONVMLP --help | true", "141 0", ""),
        ("$CONVMLP schema > /dev/full", "2", "error: stdout: can't be written: No space left on device\n"),
        ("$CONVMLP schema >&-", "0", ""),
        ("$CONVMLP check nowhere.yaml 2>/dev/full", "2", ""),
    ],
)
def test_a_terminal_that_has_gone_or_is_full_is_no_traceback(command: str, code: str, said: str) -> None:
    done = convmlp(f"{command}; echo codes ${{PIPESTATUS[@]}}")
    assert done.stderr == said
    assert done.stdout.splitlines()[-1] in (f"codes {code}", f"codes {code.replace('141', '0')}")


def test_a_message_with_colours_is_told_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("\x1b[1mbold\x1b[0m, \x1b]0;title\x07\x1b[31mred\r\n\tnext") == "bold, red\n\tnext"
    fail("a \x1b[1mcolour\x1b[0m", 2)
    assert capsys.readouterr().err == "error: a colour\n"


def test_streams_that_cannot_be_adapted_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    adapt_streams()
    print("é")
    assert sys.stdout.getvalue() == "é\n"  # type: ignore[attr-defined]
