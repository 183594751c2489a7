"""Which layer and which samples of a micro-batch make it fail, with BatchNorm and mixing between them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_run import job
from tiny_dense import tiny_job
from torch import Tensor, nn

from convmlp import create_model
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.data.reading.loader import MicroBatch
from convmlp_platform.distributed import joined_world
from convmlp_platform.engine.engine import Engine
from convmlp_platform.replay.sample_search import search_samples
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.training.build import build_task, parts

STEP = 2


@contextmanager
def step_of(root: Path, **over: Any) -> Iterator[tuple[Engine, list[MicroBatch]]]:
    """An engine with fresh weights, and a step of two micro-batches of eight normalised images."""
    values = job(root, training__micro_batch_size=8, **over)
    manifest = open_manifest(values.data.path)
    with joined_world(use_gpu=False) as world:
        loader = parts.build_train_loader(values, manifest, RunFolder(root, ""), world)
        engine = parts.build_engine(values, parts.build_task(values, manifest), manifest, world)
        micros = next(loader.steps(STEP, STEP + 1))
        yield engine, [replace(micro, images=engine.to_device(micro)[0]) for micro in micros]


def spoilt(micro: MicroBatch, place: int, value: float) -> MicroBatch:
    """With one pixel of one image set."""
    assert isinstance(micro.images, Tensor)
    images = micro.images.clone()
    images[place, 0, 3, 4] = value
    return replace(micro, images=images)


def computed(engine: Engine, micros: list[MicroBatch]) -> tuple[list[float], bool]:
    """Losses, and whether all is finite."""
    found = engine.compute(micros, step=STEP)
    finite = math.isfinite(float(engine.square_norm())) and math.isfinite(float(found.loss))
    engine.refuse()
    return [float(loss) for loss in found.losses], finite


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_the_one_bad_image_is_found_and_the_model_left_as_it_was(tmp_path: Path, mixup: float) -> None:
    with step_of(tmp_path, augment__mixup=mixup) as (engine, micros):
        micros[1] = spoilt(micros[1], 5, math.nan)
        losses, finite = computed(engine, micros)
        assert [math.isfinite(loss) for loss in losses] == [True, False]
        before = engine.full_model_state()
        found = search_samples(engine, STEP, micros, losses, finite)
        after = engine.full_model_state()
    (blame,) = found.blames
    assert found.failing == [1]
    assert [culprit.place for culprit in blame.culprits] == [5]
    assert blame.culprits[0].sample == int(micros[1].sample_ids[5])
    assert blame.mixed == (mixup > 0)
    assert blame.search.runs <= math.log2(8) + 2
    assert blame.search.rest_is_fine
    assert blame.fault is not None
    assert blame.fault.rows == ([2, 5] if mixup else [5])
    assert math.isnan(blame.culprits[0].alone)
    assert found.offenders[0] is blame.culprits[0]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_bad_gradient_alone_is_found(tmp_path: Path) -> None:
    def with_explosion(name: str, **options: Any) -> nn.Module:
        return nn.Sequential(Explosion(), create_model(name, **options))

    with (
        mock.patch.object(build_task, "create_model", with_explosion),
        step_of(tmp_path, augment__mixup=0.0) as (engine, micros),
    ):
        micros[0] = spoilt(micros[0], 3, 1e4)
        losses, finite = computed(engine, micros)
        assert all(math.isfinite(loss) for loss in losses) and not finite
        found = search_samples(engine, STEP, micros, losses, finite)
    (blame,) = found.blames
    assert (blame.number, [culprit.place for culprit in blame.culprits]) == (0, [3])
    assert blame.fault is not None
    assert (blame.fault.what, blame.fault.layer) == ("output's gradient", "0.scale (Identity)")


class Explosion(nn.Module):
    """Harmless forward; backward, infinite for images with a huge value."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.scale = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        # The square root's gradient at 0 is infinite.
        distance = (images.detach().amax((1, 2, 3), keepdim=True) < 1e3).to(images.dtype)
        return images.clamp(-5, 5) + self.scale(self.weight * distance).sqrt() * 1e-3


def test_of_a_finite_step_the_largest_losses_come_first(tmp_path: Path) -> None:
    with step_of(tmp_path) as (engine, micros):
        losses, finite = computed(engine, micros)
        found = search_samples(engine, STEP, micros, losses, finite)
    assert finite and found.failing == [] and found.blames == []
    shown = [sample.loss for sample in found.offenders]
    assert shown == sorted(shown, reverse=True)
    assert {sample.sample for sample in found.samples} == {
        sample for micro in micros for sample in micro.sample_ids.tolist()
    }


@pytest.mark.parametrize("kind", ["retinanet", "semantic_fpn"])
def test_the_one_bad_image_of_other_tasks_is_found(tmp_path: Path, kind: str) -> None:
    """Detection's images are a list, of different sizes; its targets too."""
    values = tiny_job(kind, tmp_path)
    manifest = open_manifest(values.data.path)
    with joined_world(use_gpu=False) as world:
        loader = parts.build_train_loader(values, manifest, RunFolder(tmp_path, ""), world)
        engine = parts.build_engine(values, parts.build_task(values, manifest), manifest, world)
        micros = [replace(micro, images=engine.to_device(micro)[0]) for micro in next(loader.steps(0, 1))]
        images = micros[1].images
        assert isinstance(images, list) == (kind == "retinanet")
        images[2][0, 3, 4] = math.nan
        losses, finite = computed(engine, micros)
        before = engine.full_model_state()
        found = search_samples(engine, STEP, micros, losses, finite)
        after = engine.full_model_state()
    (blame,) = found.blames
    assert found.failing == [1] and blame.search.rest_is_fine
    assert [culprit.sample for culprit in blame.culprits] == [int(micros[1].sample_ids[2])]
    assert blame.fault is not None and blame.fault.rows == [2]
    assert all(math.isfinite(one.loss) == (one is not blame.culprits[0]) for one in found.samples)
    assert all(torch.equal(after[name], value) for name, value in before.items())
