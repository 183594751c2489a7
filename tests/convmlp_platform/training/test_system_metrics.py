from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks

from convmlp_platform.distributed import World, joined_world
from convmlp_platform.training.outputs import system_metrics
from convmlp_platform.training.outputs.system_metrics import (
    LEAST_SECONDS,
    NODE_METRICS,
    NodeMeter,
    SystemMetrics,
)
from convmlp_platform.training.step_plan import TrainState


class Heard:
    """Stands for a tracker."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.tags: dict[str, str] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.points.append((step, values))

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags


def alone() -> World:
    return World(0, 0, 1, torch.device("cpu"))


def test_a_node_of_its_own_has_mlflow_s_names_and_no_point_comes_too_soon() -> None:
    heard, now = Heard(), [100.0]
    with joined_world(use_gpu=False):
        watcher = SystemMetrics(alone(), heard, lambda: now[0])  # type: ignore[arg-type]
        watcher.on_start(TrainState(), 9)
        for step, later in ((1, 0.0), (2, LEAST_SECONDS / 2), (3, LEAST_SECONDS), (4, 0.1)):
            now[0] += later
            state = TrainState()
            state.step = step
            watcher.on_log({}, state)
    assert [step for step, _ in heard.points] == [1, 3]
    assert heard.points[0][1].keys() == {f"system/{name}" for name in NODE_METRICS}
    assert all(value >= 0 for value in heard.points[0][1].values())
    assert heard.tags["system.nodes"].startswith('{"node_0": ')


def test_a_kernel_that_refuses_costs_points_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NodeMeter, "read", lambda _meter: 1 / 0)
    heard = Heard()
    with joined_world(use_gpu=False):
        watcher = SystemMetrics(alone(), heard)  # type: ignore[arg-type]
        watcher.on_start(TrainState(), 9)
        watcher.on_log({}, TrainState())
    assert heard.points == [(0, {})]


def two_nodes() -> dict[str, Any]:
    """Ranks 0 and 2 on one host, 1 on another: what rank 0 logs."""
    import os
    from unittest import mock

    rank = int(os.environ["RANK"])
    host = ("here", "there", "here")[rank]
    heard = Heard() if rank == 0 else None
    values = [float(10 * rank + place) for place in range(len(NODE_METRICS))]
    with (
        mock.patch.object(system_metrics.socket, "gethostname", lambda: host),
        mock.patch.object(NodeMeter, "read", lambda _meter: values),
        joined_world(use_gpu=False) as world,
    ):
        watcher = SystemMetrics(world, heard)  # type: ignore[arg-type]
        watcher.on_start(TrainState(), 9)
        watcher.on_log({}, TrainState())
    return {} if heard is None else {"tags": heard.tags, **heard.points[0][1]}


def test_each_node_is_read_by_its_first_rank() -> None:
    found = run_ranks(two_nodes, 3)[0]
    assert found.pop("tags") == {"system.nodes": '{"node_0": "here", "node_1": "there"}'}
    assert found == {
        f"system/node_{node}/{name}": float(10 * node + place)
        for node in (0, 1)
        for place, name in enumerate(NODE_METRICS)
    }
