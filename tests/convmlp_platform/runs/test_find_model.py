"""One notation names a model everywhere; what isn't there is refused with what is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from saved import save_now
from torch import Tensor

from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.models.bundle import WEIGHTS_NAME, BundleSpec, write_bundle
from convmlp_platform.registry import registry
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.found_model import FoundModel
from data_prep.storage.files import sha256_file

CLASSES = ("a", "b", "c")


def weights(seed: int) -> dict[str, Tensor]:
    """Stand-ins: nothing here builds a model."""
    return {"head.weight": torch.full((3, 2), float(seed)), "norm.num_batches_tracked": torch.tensor(seed)}


def spec(**provenance: Any) -> BundleSpec:
    half = (0.5, 0.5, 0.5)
    return BundleSpec(
        model="convmlp_tiny", num_classes=3, classes=CLASSES, image_size=32, mean=half, std=half, provenance=provenance
    )  # fmt: skip


def job(root: Path) -> TrainJob:
    values = {
        "kind": "train",
        "name": "pretrain",
        "model": {"name": "convmlp_tiny"},
        "data": {"path": "d"},
        "optimizer": {"lr": 1e-3},
        "training": {"epochs": 1, "global_batch_size": 4, "micro_batch_size": 4},
        "checkpoint": {"path": str(root / "runs")},
    }
    return TrainJob.model_validate(values)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run's folder: two checkpoints, of which the newer has an average, and its job."""
    run = tmp_path / "runs" / "pretrain"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"identity_fields": {}}))
    (run / "job.json").write_text(job(tmp_path).model_dump_json())
    checkpointer = Checkpointer(run / "checkpoints")
    save_now(checkpointer, Checkpoint(5, {"model": weights(5)}, {"step": 5}))
    save_now(checkpointer, Checkpoint(10, {"model": weights(10), "ema": weights(11)}, {"step": 10}))
    return run


def has(found: FoundModel, seed: int) -> bool:
    wanted, state = weights(seed), found.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_a_run_is_its_newest_average_until_it_has_a_best_model(finished: Path) -> None:
    found = find_model(str(finished))
    newest = str(finished / "checkpoints" / "step-000000010")
    assert (found.kind, found.pinned, found.location) == ("run", newest, newest)
    assert has(found, 11)
    assert found.job is not None and found.job.name == "pretrain"
    assert {
        "init.run": "pretrain",
        "init.step": "10",
        "init.model": "convmlp_tiny",
    }.items() <= found.lineage.items()
    assert find_model(found.pinned).lineage["init.weights_sha256"] == found.lineage["init.weights_sha256"]
    write_bundle(
        finished / "best", weights(3), spec(run="pretrain", step=7, dataset="d", dataset_digest="sha256:1")
    )
    best = find_model(f"file://{finished}")
    assert (best.kind, best.location, best.spec is not None) == ("run", finished / "best", True)
    assert has(best, 3)
    assert str(best) == f"{finished / 'best'} (run pretrain, dataset d sha256:1…)"


def test_a_checkpoint_has_its_own_weights(finished: Path) -> None:
    found = find_model(str(finished / "checkpoints" / "step-000000005"))
    assert found.kind == "checkpoint" and has(found, 5)
    assert has(find_model(str(finished / "checkpoints")), 11)
    with pytest.raises(
        ConfigError, match=r"step-000000007: there is no such .* step-000000005, step-000000010;"
    ):
        find_model(str(finished / "checkpoints" / "step-000000007"))


def test_a_damaged_checkpoint_is_refused(finished: Path) -> None:
    place = finished / "checkpoints" / "step-000000010"
    file = place / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"step-000000010.*ema\.safetensors isn't what was written"):
        find_model(str(place)).state_dict()


def test_a_bundle_and_its_file_are_the_same_weights(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", weights(1), spec())
    bundle, file = find_model(str(tmp_path / "bundle")), find_model(str(tmp_path / "bundle" / WEIGHTS_NAME))
    assert (bundle.kind, file.kind) == ("bundle", "file")
    assert has(bundle, 1) and has(file, 1)
    assert bundle.lineage["init.weights_sha256"] == file.lineage["init.weights_sha256"]


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    save_file({name: value.half() for name, value in weights(1).items()}, tmp_path / "half.safetensors")
    state = find_model(str(tmp_path / "half.safetensors")).state_dict()
    assert {value.dtype for value in state.values()} <= {torch.float32, torch.int64}


def test_relative_paths_are_the_user_s_or_the_root_s(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    assert has(find_model("runs/pretrain"), 11)
    monkeypatch.chdir(tmp_path / "runs")
    assert has(find_model("pretrain"), 11)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "runs/pretrian",
            r"no such file or folder; did you mean .*runs/pretrain\? .*runs holds pretrain; give models:/NAME@",
        ),
        ("runs", r"is no model; give models:/NAME@ALIAS"),
        ("runs/pretrain/checkpoints/latest", r"cannot read weights|can't be read|is neither"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, finished: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_model(str(tmp_path / text)).state_dict()


def test_a_version_is_pinned_and_its_weights_are_those_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the answer of a registry; a real one: test_transfer_end_to_end."""
    bundle = tmp_path / "bundle"
    write_bundle(bundle, weights(1), spec(dataset="digits"))
    tags = {
        "run": "pretrain",
        "dataset.digest": "sha256:2",
        "weights.sha256": sha256_file(bundle / WEIGHTS_NAME),
    }
    answer = registry.ResolvedModel(bundle, "tiny", "3", ("champion",), tags)
    monkeypatch.setattr(registry, "resolve", lambda uri, section=None, into=None: answer)
    found = find_model("models:/tiny@champion")
    assert (found.kind, found.pinned) == ("registry", "models:/tiny/3")
    assert str(found) == "models:/tiny/3 (run pretrain, dataset digits sha256:2…)"
    assert found.lineage["init.source"] == "models:/tiny@champion" and found.lineage["init.version"] == "3"
    assert has(found, 1)
    tags["weights.sha256"] = "0" * 64
    with pytest.raises(
        ConfigError, match=r"models:/tiny@champion: its weights .* are not those that were registered"
    ):
        find_model("models:/tiny@champion")
