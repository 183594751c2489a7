"""The same checkpoints on an object store, where the manifest is the commit; and what the command line shows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest
import torch
from s3_server import BUCKET, S3Proxy, s3_server
from safetensors import safe_open
from saved import save_now

from convmlp_platform.checkpoints.async_checkpointer import AsyncCheckpointer
from convmlp_platform.checkpoints.checkpointer import Checkpoint, Checkpointer, load
from convmlp_platform.checkpoints.inventory import export_checkpoint, list_checkpoints, verify_checkpoints
from convmlp_platform.checkpoints.layout import MANIFEST, Part
from convmlp_platform.checkpoints.tensor_file import TensorSlice
from convmlp_platform.errors import CheckpointError, cause_of
from data_prep.errors import Unreachable


def state(step: int, ema: bool = True) -> Checkpoint:
    groups = {"model": {"w": torch.full((3, 4), float(step))}, "optimizer": {"w/exp_avg": torch.ones(3, 4)}}
    if ema:
        groups["ema"] = {"w": torch.full((3, 4), step / 2)}
    return Checkpoint(step, groups, {"samples_seen": 8 * step, "epoch": 0.5, "metrics": {"eval/top1": 0.25}})


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Proxy]:
    with s3_server() as proxy:
        yield proxy


@pytest.fixture(params=["folder", "file://", "memory://", "s3://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "s3://":
        request.getfixturevalue("s3")
        return f"s3://{BUCKET}/{tmp_path.name}/run/checkpoints"
    if request.param == "memory://":
        return f"memory://{tmp_path.name}/run/checkpoints"
    return f"{'file://' if request.param == 'file://' else ''}{tmp_path}/run/checkpoints"


def files_in(place: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    return sorted(str(found).removeprefix(f"{path}/") for found in fs.find(path))


def test_saved_retired_found_and_loaded_anywhere(place: str) -> None:
    saver = AsyncCheckpointer(Checkpointer(place, keep=2), session="attempt-4")
    for step in (1, 2, 3):
        saver.save(state(step))
    saver.close()
    names = ("ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json")
    remote = not place.startswith(("file://", "/"))
    places = [(step, f"attempt-4.{step}/{name}" if remote else name) for step in (2, 3) for name in names]
    wanted = [
        "latest",
        *(f"step-00000000{step}/{name}" for step, name in [*places, (2, MANIFEST), (3, MANIFEST)]),
    ]
    assert files_in(place) == sorted(wanted)
    newest = Checkpointer(place).newest()
    assert newest is not None
    found = load(newest)
    assert (found.step, found.facts["samples_seen"]) == (3, 24)
    assert torch.equal(found.tensors["ema"]["w"], torch.full((3, 4), 1.5))
    assert Checkpointer(place).discard_after(2) == [3]
    assert Checkpointer(place).newest() == Checkpointer(place).store.location(2)


def test_a_step_without_manifest_does_not_exist_and_a_damaged_one_is_passed_over(place: str) -> None:
    checkpointer = Checkpointer(place)
    saver = AsyncCheckpointer(checkpointer)
    for step in (1, 2, 3):
        saver.save(state(step))
    saver.close()
    fs, path = fsspec.core.url_to_fs(place)
    fs.invalidate_cache()
    fs.rm_file(f"{path}/step-000000003/manifest.json")
    model = checkpointer.files(2)["model.safetensors"].place("model.safetensors")
    content = bytearray(fs.cat_file(f"{path}/step-000000002/{model}"))
    content[-1] ^= 1
    fs.pipe_file(f"{path}/step-000000002/{model}", bytes(content))
    assert Checkpointer(place).newest() == checkpointer.store.location(1)
    rows = {row.step: row.problem for row in verify_checkpoints(place)}
    assert rows[1] is None
    assert "model.safetensors isn't what was written: its SHA-256 is" in str(rows[2])
    saver = AsyncCheckpointer(Checkpointer(place))
    saver.save(state(2))
    saver.close()
    assert Checkpointer(place).is_whole(2)


def test_an_outage_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that would go on from an older checkpoint, or from none, waits for a restart instead."""
    place = f"memory://{tmp_path.name}/outage/checkpoints"
    checkpointer = Checkpointer(place)
    for step in (1, 2):
        save_now(checkpointer, state(step))

    def away(*_: object) -> bytes:
        raise Unreachable("the storage is away")

    for refused in (checkpointer.store.read, checkpointer.store.stream):
        with monkeypatch.context() as outage:
            outage.setattr(checkpointer.store, refused.__name__, away)
            with pytest.raises(CheckpointError, match="the storage is away") as caught:
                checkpointer.newest()
            assert cause_of(caught.value) == "storage"
    assert checkpointer.newest() == checkpointer.store.location(2)


def test_ranks_write_parts_anywhere(place: str) -> None:
    savers = [AsyncCheckpointer(Checkpointer(place), part=Part(i, 2), session="a1") for i in range(2)]
    for number, saver in enumerate(savers):
        run = {"w": torch.arange(6.0)[3 * number : 3 * number + 3]}
        saver.save(Checkpoint(7, {"model": run}, {}, {"model": {"w": TensorSlice((2, 3), 3 * number)}}))
    for saver in savers:
        saver.close()
    newest = Checkpointer(place).newest()
    assert newest is not None
    assert torch.equal(load(newest).tensors["model"]["w"], torch.arange(6.0).view(2, 3))
    assert not [name for name in files_in(place) if "hand-in" in name]


def in_two_parts(place: str) -> list[AsyncCheckpointer]:
    return [
        AsyncCheckpointer(Checkpointer(place), part=Part(i, 2), session="attempt-1", first_pause=0.01)
        for i in range(2)
    ]


def save_parts(savers: list[AsyncCheckpointer], step: int) -> None:
    for number, saver in enumerate(savers):
        run = {"w": torch.arange(6.0)[3 * number : 3 * number + 3] + step}
        saver.save(Checkpoint(step, {"model": run}, {}, {"model": {"w": TensorSlice((2, 3), 3 * number)}}))
    for saver in savers:
        saver.wait(120)


def fail_requests(s3: S3Proxy, name: str, only: str = "") -> int:
    """Save in two parts, while one request (of those that `METHOD PATH` finds) is answered wrongly once; how many
    combinations were tried."""
    asked: list[tuple[str, str]] = []

    def request_of(method: str, path: str) -> tuple[str, str]:
        return method, re.sub(r"(?<=uploadId=).*", "", path)

    def record(method: str, path: str) -> None:
        asked.append(request_of(method, path))

    savers = in_two_parts(f"s3://{BUCKET}/{name}-dry/checkpoints")
    save_parts(savers, 1)
    s3.faults.decide = record
    save_parts(savers, 2)
    faults: list[int | Literal["reset", "cut"]] = [500, 503, "reset", "cut"]
    requests = [request for request in dict.fromkeys(asked) if re.search(only, " ".join(request))]
    chosen = list(itertools.product(requests, faults))
    for number, (request, fault) in enumerate(chosen):
        left = [fault]
        wanted = request[0], request[1].replace(f"{name}-dry", f"{name}-{number}")

        def decide(
            method: str, path: str, left: Any = left, wanted: tuple[str, str] = wanted
        ) -> int | Literal["reset", "cut"] | None:
            return left.pop() if left and request_of(method, path) == wanted else None

        place = f"s3://{BUCKET}/{name}-{number}/checkpoints"
        savers = in_two_parts(place)
        save_parts(savers, 1)
        s3.faults.decide = decide
        save_parts(savers, 2)
        save_parts(savers, 3)
        assert not left, request
        for step in (1, 2, 3):
            Checkpointer(place).verify(step)
            found = load(Checkpointer(place).store.location(step))
            assert torch.equal(found.tensors["model"]["w"], torch.arange(6.0).view(2, 3) + step), request
        assert len(files_in(place)) == 3 * 4 + 1, (request, files_in(place))
    s3.reset()
    return len(chosen)


@pytest.mark.slow
def test_a_commit_that_fails_once_costs_no_checkpoint(s3: S3Proxy) -> None:
    """Among the faults: the manifest is there, and its answer is lost."""
    assert fail_requests(s3, "some", "PUT .*/manifest.json") == 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_request_that_fails_once_costs_no_checkpoint(s3: S3Proxy) -> None:
    count = fail_requests(s3, "all")
    print(f"{count} combinations on S3, 2 writers")
    assert count >= 60


def test_listed_verified_and_exported(place: str, tmp_path: Path) -> None:
    saver = AsyncCheckpointer(Checkpointer(place))
    for step in (1, 2):
        saver.save(state(step))
    saver.close()
    run = place.removesuffix("/checkpoints")
    rows = list_checkpoints(run)
    assert [(row.step, row.samples_seen, row.epoch, row.files) for row in rows] == [
        (1, 8, 0.5, 4),
        (2, 16, 0.5, 4),
    ]
    assert rows == list_checkpoints(place)
    assert all(row.bytes > 300 and row.problem is None for row in verify_checkpoints(run))
    assert export_checkpoint(run, tmp_path / "a.safetensors")["weights"] == "ema"
    export_checkpoint(rows[0].location, tmp_path / "b.safetensors", "model")
    for name, value, step in (("a", 1.0, "2"), ("b", 1.0, "1")):
        with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
            assert torch.equal(file.get_tensor("w"), torch.full((3, 4), value))
            assert file.metadata()["step"] == step


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        list_checkpoints(tmp_path)
    save_now(Checkpointer(tmp_path / "checkpoints"), state(1, ema=False))
    with pytest.raises(CheckpointError, match="kept no average"):
        export_checkpoint(tmp_path, tmp_path / "x.safetensors", "ema")
    assert export_checkpoint(tmp_path, tmp_path / "x.safetensors")["weights"] == "model"
    with pytest.raises(CheckpointError, match="can't write"):
        export_checkpoint(tmp_path, tmp_path / "nowhere" / "x.safetensors")
