"""A step of a run done again: to the last bit where it can be, else within rounding, and the samples to blame."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from prepared import digits, few_digits
from ranks import run_ranks
from test_run import Losses, job
from torch import Tensor, nn

from convmlp import create_model
from convmlp.transforms.pixels import Normalize
from convmlp_platform.cli.main import main
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sections.resilience import GuardSection
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import CheckpointError, ConfigError, DataError, NumbersError
from convmlp_platform.replay import step_record
from convmlp_platform.replay.replay_report import report_lines
from convmlp_platform.replay.replay_step import Replay, replay
from convmlp_platform.tracking import tracker
from convmlp_platform.training.build import build_task, parts
from convmlp_platform.training.guard.incidents import read_incidents
from convmlp_platform.training.run import run

STEPS, BATCH = 7, 16


def tiny(root: Path, **over: Any) -> TrainJob:
    """Seven steps, logged one by one, checkpoints after 3, 6 and 7."""
    values: dict[str, Any] = {
        "training__max_steps": STEPS,
        "training__log_every_steps": 1,
        "training__clip_grad_norm": 1.0,
        "checkpoint__every_steps": 3,
    }
    return job(root, **{**values, **over})


class Unsent:
    """In the place of tracking's feeder: what is recorded stays in the run's folder."""

    def __init__(self, *_: object) -> None: ...
    def ensure_alive(self) -> None: ...
    def close(self, timeout: float) -> bool:
        return True


def trained(values: TrainJob) -> dict[int, float]:
    losses = Losses()
    with mock.patch.object(tracker, "Feeder", Unsent):
        run(values, [losses])
    return losses.by_step


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """A run of one worker, and its losses by the number of steps done."""
    root = tmp_path_factory.mktemp("replay")
    losses = trained(tiny(root))
    return root / "runs" / "tiny", losses


@pytest.mark.parametrize(
    "step, kind", [pytest.param(6, "checkpoint", marks=pytest.mark.slow), (5, "checkpoint"), (1, "beginning")]
)
def test_a_replay_has_the_loss_of_the_run_to_the_last_bit(
    done: tuple[Path, dict[int, float]], step: int, kind: str
) -> None:
    folder, losses = done
    before = contents(folder)
    found = replay(folder, step)
    assert (found.start.kind, found.inexact, found.inexact_sums) == (kind, [], [])
    assert found.loss == losses[step + 1]
    assert found.window is not None and found.record.logged is not None
    assert found.window == (found.record.logged.loss, found.record.logged.grad_norm)
    assert found.compared
    assert math.fsum(found.losses) / len(found.losses) == pytest.approx(found.loss, rel=1e-6)
    assert {sample.number for sample in found.findings.samples} == {0, 1, 2, 3}
    assert len(found.findings.samples) == BATCH
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and when it was changed."""
    stats = {str(path): path.stat() for path in [folder, *folder.rglob("*")]}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def test_the_command_prints_the_comparison_and_writes_pictures(
    done: tuple[Path, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, losses = done
    monkeypatch.setenv("CONVMLP_ROOT", str(folder.parents[1]))
    code = main(["replay", "--run", "tiny", "--step", "4", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert code == 0
    assert "exact     each micro-batch to the last bit" in printed
    assert "equal to the last bit to the metrics of step 4" in printed
    assert (tmp_path / "out" / "tiny-step-4.png").stat().st_size > 1000
    written = json.loads((tmp_path / "out" / "tiny-step-4.json").read_text())
    assert written["loss"] == losses[5]
    assert len(written["samples"]) == BATCH
    assert {"sample", "epoch", "key", "shard", "loss", "alone"} <= written["samples"][0].keys()


def test_what_cannot_be_replayed_is_refused_with_the_reason(
    done: tuple[Path, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = done
    with pytest.raises(DataError, match=r"didn't get to step 8: steps 0 to 6 are on record"):
        replay(folder, STEPS + 1)
    with pytest.raises(ConfigError, match=r"not the run's:\n  optimizer.lr: 0.001 → 0.5"):
        replay(folder, 5, overrides=["optimizer.lr=0.5"])
    with pytest.raises(DataError, match=r"--incident 3 is no bad step 5"):
        replay(folder, 5, incident=3)
    monkeypatch.setattr(step_record, "MOST_FROM_START", 1)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint at or before step 2 .*there are: 3, 6, 7.*--from-start"
    ):
        replay(folder, 2)
    assert replay(folder, 2, from_start=True).start.kind == "beginning"
    assert main(["replay", "--run", str(tmp_path), "--step", "1"]) == 2
    assert "no run's folder" in capsys.readouterr().err
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "job.json").unlink()
    assert main(["replay", "--run", str(copy), "--step", "1"]) == 2
    assert "holds no job.json" in capsys.readouterr().err


def test_another_dataset_is_refused_and_a_moved_one_found(
    done: tuple[Path, dict[int, float]], tmp_path: Path
) -> None:
    folder, losses = done
    moved = shutil.copytree(few_digits(), tmp_path / "moved")
    assert replay(folder, 6, overrides=[f"data.path={moved}"]).loss == losses[7]
    for shard in (moved / "webdataset").glob("train-*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DataError, match=r"step 6, micro-batch 0: sample .* can't be read as it was consumed"):
        replay(folder, 6, overrides=[f"data.path={moved}"])


def test_a_rolled_back_step_takes_its_attempt(tmp_path: Path) -> None:
    losses = trained(tiny(tmp_path, training__max_steps=6))
    folder = tmp_path / "runs" / "tiny"
    shutil.rmtree(folder / "checkpoints" / "step-000000006")
    trained(tiny(tmp_path, training__max_steps=4))
    with pytest.raises(
        DataError, match=r"step 5 was rolled back: attempt 1 did it.*is at step 4.*--attempt 1"
    ):
        replay(folder, 5)
    assert replay(folder, 5, attempt=1).loss == losses[6]
    assert replay(folder, 3).record.attempt == 2


class Poison(nn.Module):
    """Divides images [B, 3, H, W] that are brighter than a limit by zero."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        harmless = (images.mean((1, 2, 3), keepdim=True) < self.limit).to(images.dtype)
        return images / harmless


def poisoned_model(limit: float, name: str, **options: Any) -> nn.Module:
    return nn.Sequential(Poison(limit), create_model(name, **options))


def poisoned(limit: float) -> Any:
    """Within: models have a layer that doesn't bear bright images."""
    return mock.patch.object(build_task, "create_model", partial(poisoned_model, limit))


def trained_poisoned(values: TrainJob, limit: float) -> dict[int, float]:
    with poisoned(limit):
        return trained(values)


def bright(root: Path) -> TrainJob:
    """Unmixed: a mixture is not as bright. Of all digits, the brightest comes before the last step."""
    return tiny(root, data__path=str(digits()), augment__mixup=0.0, training__micro_batch_size=8)


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, int, int]:
    """A brightness that one image alone of the run's exceeds; its sample id, and the step that uses it."""
    values = bright(tmp_path_factory.mktemp("poison"))
    manifest = open_manifest(values.data.path)
    folder = parts.RunFolder(Path(values.checkpoint.path), "")
    world = parts.World(0, 0, 1, torch.device("cpu"))
    loader = parts.build_train_loader(values, manifest, folder, world)
    found = [
        (float(mean), int(sample), step)
        for step, micros in enumerate(loader.steps(0, STEPS))
        for micro in micros
        for mean, sample in zip(means(micro.images, manifest), micro.sample_ids, strict=True)
    ]
    (highest, sample, step), (second, _, _) = sorted(found, reverse=True)[:2]
    assert highest > second
    return (highest + second) / 2, sample, step


def means(images: Any, manifest: Any) -> Tensor:
    images = Normalize(manifest.mean, manifest.std)(images) if images.dtype == torch.uint8 else images
    return images.mean((1, 2, 3))


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_sample_that_poisons_a_step_is_found_by_name(
    tmp_path: Path, poison: tuple[float, int, int], world_size: int
) -> None:
    limit, sample, step = poison
    values = bright(tmp_path)
    losses = (
        trained_poisoned(values, limit)
        if world_size == 1
        else run_ranks(trained_poisoned, world_size, values, limit)[0]
    )
    folder = tmp_path / "runs" / "tiny"
    (incident,) = read_incidents(folder / "incidents")
    assert (incident.step, incident.facts["action"]) == (step, "skip")
    with poisoned(limit):
        found = replay(folder, step)
        later = replay(folder, STEPS - 1, from_start=True)
    assert found.start.kind == "incident"
    assert math.isnan(found.loss) and not found.finite
    same_losses(found, [record["loss"] for record in incident.micro_batches])
    (blame,) = found.findings.blames
    assert [culprit.sample for culprit in blame.culprits] == [sample]
    assert blame.search.rest_is_fine
    assert blame.search.runs <= math.log2(8) + 2
    assert blame.fault is not None and blame.fault.layer == "0 (Poison)"
    assert blame.fault.rows == [culprit.place for culprit in blame.culprits]
    report = "\n".join(report_lines(found))
    assert f"sample {sample} of epoch 0: {found.loader.split.key(sample)!r}" in report
    assert found.loader.split.shards[found.loader.split.locate(sample)[0]].file in report
    assert f"{2} of 2 are equal to the last bit to the incident's" in report
    # The run skipped the step's update, and so does the replay on its way past it.
    exact = world_size == 1
    assert later.loss == (losses[STEPS] if exact else pytest.approx(losses[STEPS], rel=1e-3))
    assert bool(later.inexact) != exact


def test_a_step_that_stopped_the_run_is_replayed_though_it_was_never_recorded(
    tmp_path: Path, poison: tuple[float, int, int]
) -> None:
    limit, sample, step = poison
    values = bright(tmp_path).model_copy(update={"guard": GuardSection(on_non_finite="stop")})
    with pytest.raises(NumbersError):
        trained_poisoned(values, limit)
    with poisoned(limit):
        found = replay(tmp_path / "runs" / "tiny", step)
    assert (found.start.kind, found.compared) == ("incident", False)
    assert [culprit.sample for blame in found.findings.blames for culprit in blame.culprits] == [sample]
    assert any("not compared" in line for line in report_lines(found))
    # Another model than the run's: the numbers don't repeat, and the replay says so.
    with poisoned(10 * abs(limit)):
        healthy = replay(tmp_path / "runs" / "tiny", step)
    assert healthy.finite
    assert any("finite here, and was not in the run" in line for line in report_lines(healthy))


def same_losses(found: Replay, recorded: list[float | None]) -> None:
    """Equal to the last bit, NaN to NaN."""
    np.testing.assert_array_equal(np.array(found.losses), np.array(recorded, dtype=float))
