"""Any damage to a JSON file of ours is one error, which says what and where."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.output_folder import begin_work
from data_prep.shards.shard import WORK_FOLDER
from data_prep.storage.json_files import Count, DamagedJson, parse_json, parse_json_lines, read_json


@dataclass(frozen=True)
class Facts:
    step: Count
    names: tuple[str, ...] = ()
    loss: float | None = None


BROKEN = {
    "empty": b"",
    "no JSON": b"{step: 1}",
    "cut off": b'{"step": 1',
    "more behind it": b'{"step": 1} {"step": 2}',
    "other encoding": '{"step": "é"}'.encode("latin-1"),
    "half a surrogate pair": b'{"step": 1, "names": ["\\ud800"]}',
    "NaN": b'{"step": 1, "loss": NaN}',
    "infinite": b'{"step": 1, "loss": -Infinity}',
    "too large for a float": b'{"step": 1, "loss": 1e999}',
    "too large where nobody looks": b'{"step": 1, "other": [1e999]}',
    "too large for an integer": b'{"step": 1' + b"0" * 400 + b"}",
    "too large for Python": b'{"step": 1' + b"0" * 5000 + b"}",
    "deep": b'{"step": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep where nobody looks": b'{"step": 1, "other": ' + b"[" * 300 + b"]" * 300 + b"}",
    "null": b"null",
    "a list": b"[1]",
    "no step": b"{}",
    "step is text": b'{"step": "1"}',
    "step is true": b'{"step": true}',
    "step is a float": b'{"step": 1.0}',
    "step is negative": b'{"step": -1}',
    "step is an object": b'{"step": {}}',
    "names is no list": b'{"step": 1, "names": 2}',
    "loss is text": b'{"step": 1, "loss": "nan"}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_all_damage_is_one_error(content: bytes) -> None:
    with pytest.raises(DamagedJson):
        parse_json(content, Facts)


def test_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b'{"step": 3, "names": ["a"], "loss": 1, "later": {}}')
    assert read_json(path, Facts) == Facts(3, ("a",), 1.0)
    values = {"a": [1, 2.5, None, True, "é"], "b": {"c": (1 << 64) - 1}}
    path.write_text(json.dumps(values))
    assert read_json(path, dict[str, Any]) == values


def test_message_says_what_and_where(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b'{"names": [1, 2, 3]}')
    with pytest.raises(DamagedJson) as caught:
        read_json(path, Facts)
    assert str(caught.value) == (
        f"{path} is damaged: step: field required; names.0: input should be a valid string; "
        "names.1: input should be a valid string (and 1 more)"
    )


def test_missing_file_is_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", Facts)


def test_metrics_may_be_nan_where_writers_write_it() -> None:
    content = json.dumps({"step": 1, "loss": math.nan}).encode()
    found = parse_json(content, Facts, finite=False)
    assert found.loss is not None and math.isnan(found.loss)
    with pytest.raises(DamagedJson):
        parse_json(b'{"step": Infinity}', Facts, finite=False)


def test_damaged_lines_are_told_from_whole_ones() -> None:
    content = b'{"step": 1}\n\n{"step": 1e999}\n{"step": 2}\n' + b"[" * 9000 + b'\n{"st'
    found = [facts and facts.step for facts in parse_json_lines(content, Facts)]
    assert found == [1, None, 2, None, None]


def test_a_damaged_plan_of_an_unfinished_job_is_another_plan(tmp_path: Path) -> None:
    assert begin_work(tmp_path, "a" * 64) is False
    (plan,) = (tmp_path / WORK_FOLDER).iterdir()
    plan.write_bytes(b"\xff" * 64)
    assert begin_work(tmp_path, "a" * 64) is False
    assert begin_work(tmp_path, "a" * 64) is True
