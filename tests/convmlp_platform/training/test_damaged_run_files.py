"""A JSON file of a run that is not what was written is that file's error, or is passed over where that is the rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convmlp_platform.config.identity import read_identity, write_identity
from convmlp_platform.errors import PlatformError
from convmlp_platform.evaluation.compare.find_compared import find_compared
from convmlp_platform.evaluation.result import read_result
from convmlp_platform.goodput.account import account_of
from convmlp_platform.health.events import RunEvents, read_events
from convmlp_platform.ledger.ledger_reader import check_checkpoints
from convmlp_platform.ledger.proof_report import LedgerFindings
from convmlp_platform.runs.init_record import read_record
from convmlp_platform.runs.run_folder import stored_identity, stored_job
from convmlp_platform.runs.trial_record import read_end
from convmlp_platform.training.guard.guard import Rollbacks
from convmlp_platform.training.guard.incidents import open_incident, read_incidents
from data_prep.storage.json_files import DamagedJson, parse_json

DAMAGE = {
    "empty": b"",
    "cut off": b'{"a": [1, ',
    "not UTF-8": b'{"a": "\xff"}',
    "null": b"null",
    "a number": b"1e999",
    "a list": b"[[]]",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
}

READERS: dict[str, tuple[str, Callable[[Path], Any], bytes]] = {
    "run.json": ("run.json", stored_identity, b'{"identity_fields": [1e999]}'),
    "job.json": ("job.json", stored_job, b'{"name": 1e999}'),
    "rollbacks.json": (
        "rollbacks.json",
        lambda run: Rollbacks.read(run / "rollbacks.json"),
        b'{"total": "1"}',
    ),
    "init.json": ("init/init.json", read_record, b'{"text": [], "kind": 1}'),
    "result.json": ("result.json", read_result, b'{"name": {}}'),
    "sweep.json": ("sweep.json", lambda run: find_compared(str(run)), b'{"trials": {"a": 1}}'),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", [*DAMAGE, "wrong types"])
def test_damage_is_the_files_error(tmp_path: Path, name: str, damage: str) -> None:
    place, read, wrong_types = READERS[name]
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(DAMAGE.get(damage, wrong_types))
    with pytest.raises(PlatformError, match=str(file)):
        read(tmp_path)


def test_changed_identity_is_damage_and_no_other_recipe(tmp_path: Path) -> None:
    write_identity(tmp_path, {"optimizer.lr": 0.001})
    assert read_identity(tmp_path) == {"optimizer.lr": 0.001}
    file = tmp_path / "run.json"
    file.write_text(file.read_text().replace("0.001", "0.002"))
    with pytest.raises(DamagedJson, match=r"run\.json is damaged"):
        read_identity(tmp_path)


def test_damaged_events_are_left_out(tmp_path: Path) -> None:
    events = RunEvents(tmp_path / "events.jsonl")
    events.append("driver_started", num_workers=2)
    events.append("attempt_started", start=1, world_size=2, hosts=["a", "b"])
    whole = events.path.read_bytes()
    wrong = [
        *DAMAGE.values(),
        b'{"time": 1e999, "kind": "driver_started"}',
        b'{"time": 1, "kind": "attempt_started", "start": "7"}',
        b'{"time": 1, "kind": "attempt_started", "start": 1' + b"0" * 400 + b"}",
        b'{"time": 1, "kind": "attempt_running", "start": 1, "seconds": {"load": "x"}}',
        b'{"time": 1e300, "kind": "driver_ended"}',
        b'{"time": 1, "kind": "attempt_started", "start": 1, "world_size": 1000000000000}',
        b'{"time": true, "kind": []}',
        b'{"kind": "driver_ended"}',
    ]
    events.path.write_bytes(b"\n".join(wrong) + b"\n" + whole + b"\n".join(wrong))
    found = read_events(events.path)
    assert [event["kind"] for event in found] == ["driver_started", "attempt_started"]
    assert found[1]["hosts"] == ["a", "b"]
    assert account_of(tmp_path) is not None


def test_damaged_incidents_and_ends_are_left_out(tmp_path: Path) -> None:
    whole = open_incident(tmp_path / "incidents", "hang", 3, {"message": "rank 1 stands still"})
    for place, content in enumerate(
        [*DAMAGE.values(), b'{"micro_batches": [{"number": "1"}]}', b'{"loss": "many"}']
    ):
        path = tmp_path / "incidents" / f"{place + 10:04d}-hang-step-3" / "incident.json"
        path.parent.mkdir()
        path.write_bytes(content)
        end = tmp_path / str(place)
        end.mkdir()
        (end / "trial.json").write_bytes(content)
        assert read_end(end) is None
    assert [incident.path for incident in read_incidents(tmp_path / "incidents")] == [whole]


@pytest.mark.parametrize("content", [*DAMAGE.values(), b'{"step": 1e999}', b'{"step": 1, "attempt": [1]}'])
def test_ledger_passes_over_damaged_checkpoints(tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "checkpoints" / "step-000000003" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_bytes(content)
    findings = LedgerFindings()
    check_checkpoints(tmp_path, {}, findings)
    assert not findings.counts
    state.write_text(json.dumps({"step": 3, "attempt": 1, "metrics": {"eval/loss": float("nan")}}))
    check_checkpoints(tmp_path, {}, findings)
    assert findings.counts


def test_incidents_facts_are_read_as_written(tmp_path: Path) -> None:
    facts = {"attempt": 2, "loss": float("inf"), "other": [1.5], "micro_batches": []}
    made = open_incident(tmp_path, "spike", 3, facts)
    (found,) = read_incidents(tmp_path)
    assert found.facts == parse_json((made / "incident.json").read_bytes(), dict[str, Any])
    assert found.loss == float("inf") and found.grad_norm is None
