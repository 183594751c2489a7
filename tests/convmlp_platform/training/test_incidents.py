"""The record of incidents: whole or absent, numbered once, and readable by whoever has no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from convmlp_platform.config.sections.execution import TrackingSection
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking import tracker
from convmlp_platform.tracking.delivery_state import journal_path
from convmlp_platform.tracking.journal import Artifact, read_chunk, tag_history
from convmlp_platform.training.guard import incidents
from convmlp_platform.training.guard.incidents import (
    MOST_WITH_WEIGHTS,
    add_file,
    capture,
    keeps_weights,
    merged,
    open_incident,
    part_of,
    read_incidents,
)
from convmlp_platform.training.outputs.outputs import log_incident, log_new_incidents


def bad_step(folder: Path, step: int = 7, **facts: Any) -> Path:
    numbers: dict[str, Any] = {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1, "action": "skip"}
    weights = {
        "head.weight": torch.arange(6.0).reshape(2, 3).t(),
        "norm.num_batches_tracked": torch.tensor(3),
    }
    rest = {"attempt": 2, "world_size": 4, "micro_batches": [], "weights": weights}
    return capture(folder, "non_finite", step, **{**rest, **numbers, **facts})


def test_an_incident_has_its_facts_and_files(tmp_path: Path) -> None:
    path = open_incident(
        tmp_path / "incidents", "hang", 12, {"rank": 3, "stalled_s": 9.5}, {"stacks-rank-3.txt": b"..."}
    )
    add_file(path, "stacks-rank-0.txt", b"main thread")
    assert path.name == "0001-hang-step-12"
    assert {file.name for file in path.iterdir()} == {
        "incident.json",
        "stacks-rank-0.txt",
        "stacks-rank-3.txt",
    }
    (found,) = read_incidents(tmp_path / "incidents")
    assert (found.number, found.kind, found.step, found.facts["rank"]) == (1, "hang", 12, 3)
    assert (found.weights, found.micro_batches, found.loss) == (None, [], None)


def test_numbers_that_json_has_no_words_for_come_back(tmp_path: Path) -> None:
    batch = merged([[record(1, float("inf"))], [record(0, 0.1)]])
    path = bad_step(tmp_path, micro_batches=batch)
    json.loads((path / "incident.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    (found,) = read_incidents(tmp_path)
    assert found.loss != found.loss
    assert found.grad_norm == float("inf")
    assert found.micro_batches == [record(0, 0.1), record(1, float("inf"))]


def record(number: int, loss: float | None) -> incidents.MicroBatchRecord:
    return {"number": number, "loss": loss, "samples": [5, 9], "epochs": [0, 1], "replaced": []}


def test_a_ranks_part_leaves_ghosts_out() -> None:
    ids, epochs = torch.tensor([5, 9]), torch.tensor([0, 1])
    real = SimpleNamespace(
        number=2, sample_ids=ids, epochs=epochs, replaced=torch.tensor([False, True]), ghost=False
    )
    ghost = SimpleNamespace(**{**vars(real), "ghost": True})
    assert part_of([real, ghost], [0.5, 0.5]) == [{**record(2, 0.5), "replaced": [1]}]  # type: ignore[list-item]
    assert part_of([real])[0]["loss"] is None  # type: ignore[list-item]


def test_weights_are_kept_of_the_first_incidents_only(tmp_path: Path) -> None:
    for step in range(MOST_WITH_WEIGHTS + 1):
        assert keeps_weights(tmp_path) == (step < MOST_WITH_WEIGHTS)
        bad_step(tmp_path, step)
    found = read_incidents(tmp_path)
    assert [incident.weights is not None for incident in found] == [True] * MOST_WITH_WEIGHTS + [False]
    assert found[0].weights is not None
    kept = load_file(found[0].weights)
    assert torch.equal(kept["head.weight"], torch.arange(6.0).reshape(2, 3).t())
    assert kept["norm.num_batches_tracked"] == 3


def test_writers_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda step: open_incident(tmp_path, "crash", step, {}), range(40)))
    assert sorted(path.name[:4] for path in paths) == [f"{number:04d}" for number in range(1, 41)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_refused_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(incidents, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        bad_step(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "", ".hidden", "incident.json"])
def test_files_stay_in_their_incident(tmp_path: Path, name: str) -> None:
    path = open_incident(tmp_path, "hang", 0, {})
    with pytest.raises(ValueError, match="is no name"):
        add_file(path, name, b"")


def test_what_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (open_incident(tmp_path, "hang", 0, {}) / "incident.json").write_text("{")
    whole = open_incident(tmp_path, "hang", 1, {})
    assert [found.path for found in read_incidents(tmp_path)] == [whole]
    assert "0001-hang-step-0 is left out" in caplog.text
    assert read_incidents(tmp_path / "nothing") == []


def test_writing_takes_no_torch() -> None:
    code = (
        "import sys, convmlp_platform.training.guard.incidents; "
        "assert not {'torch', 'numpy', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_incidents_get_to_mlflow_once_and_without_weights(tmp_path: Path) -> None:
    class Unsent:
        def __init__(self, *_: object) -> None: ...
        def ensure_alive(self) -> None: ...
        def close(self, timeout: float) -> bool:
            return True

    folder = RunFolder(tmp_path, "identity")
    with mock.patch.object(tracker, "Feeder", Unsent):
        section = TrackingSection(uri=f"sqlite:///{tmp_path}/mlflow.db")
        open_tracker = tracker.Tracker.open(section, run_dir=tmp_path, run_name="tiny")
        log_new_incidents(open_tracker, folder)
        log_incident(open_tracker, bad_step(folder.incidents, message="loss nan"))
        open_incident(folder.incidents, "hang", 9, {"message": "rank 3 stands still"}, {"stacks.txt": b"..."})
        for _ in range(2):
            log_new_incidents(open_tracker, folder)
        open_tracker.finish()
    records = read_chunk(journal_path(tmp_path)).records
    logged = [(Path(record.source).name, record.folder) for record in records if isinstance(record, Artifact)]
    assert logged == [
        ("incident.json", "incidents/0001-non_finite-step-7"),
        ("incident.json", "incidents/0002-hang-step-9"),
        ("stacks.txt", "incidents/0002-hang-step-9"),
    ]
    tags = tag_history(journal_path(tmp_path))
    assert tags["incidents.last"] == {"hang at step 9: rank 3 stands still"}
    assert tags["incidents"] == {"2"}
