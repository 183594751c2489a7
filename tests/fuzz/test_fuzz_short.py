"""The short form of `make fuzz`: some damaged files of every format."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import mutate

FILES = 40


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """In a process of its own, which has no other test's threads when it forks."""
    script = Path(__file__).with_name("run_fuzz.py")
    command = [
        sys.executable,
        str(script),
        "--files",
        str(FILES),
        "--seed",
        "3",
        "--keep",
        str(tmp_path),
        "--processes",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize(
    ("text", "content"),
    [(None, bytes(range(256))), ("json", b'{"a": [1, {"b": "c"}]}'), ("yaml", b"a: 1\nb: 2")],
)
def test_inputs_can_be_made_again(text: None, content: bytes) -> None:
    made = [mutate(random.Random(f"7/{number}"), content, text) for number in range(200)]
    assert made == [mutate(random.Random(f"7/{number}"), content, text) for number in range(200)]
    assert content not in made
    assert len(set(made)) > 100
