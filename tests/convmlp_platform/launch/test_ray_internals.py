"""Ray's private names that `launch/cluster/ray_internals` uses: where an upgrade takes one away, this fails by name."""

from __future__ import annotations

import importlib
import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from convmlp_platform.launch.cluster import ray_internals as internals

NEEDED_BY = {
    "ray._raylet:Config.initialize": "a second Ray of one process with other authentication (cluster/auth.py)",
    "ray._raylet:AuthenticationTokenLoader.instance": "the same (cluster/auth.py)",
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": "a Ray of ours that listens on loopback only (connect.py)",
    "ray._private.services:get_node": "patience with a Ray that starts slowly (cluster/connect.py)",
    "ray._private.worker:print_to_stdstream": "one line for a worker's death in place of Ray's paragraph",
    "ray._private.state:state.get_draining_nodes": "leaving nodes in time (cluster/ray_cluster.py)",
    "ray._private.state:available_resources_per_node": "placing workers where there is room (ray_cluster.py)",
    "ray.core.generated.common_pb2:NodeDeathInfo.EXPECTED_TERMINATION": "preemption as a cause (ray_cluster.py)",
    "ray.core.generated.common_pb2:NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED": "preemption as a cause",
    "ray.core.generated.common_pb2:NodeDeathInfo.AUTOSCALER_DRAIN_IDLE": "preemption as a cause",
    "ray.core.generated.common_pb2:NodeDeathInfo.Reason.Name": "preemption as a cause",
}


@pytest.mark.parametrize("name", NEEDED_BY)
def test_it_is_there(name: str) -> None:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        assert hasattr(found, part), (
            f"Ray: no {module}.{path}: {part} is missing; {NEEDED_BY[name]} depends on it"
        )
        found = getattr(found, part)


def test_init_takes_the_folder() -> None:
    source = inspect.getsource(ray.init)
    told = f"Ray: ray.init takes no {internals.TEMP_DIR_OPTION}; a Ray of ours in a folder of its own depends on it"
    assert f'"{internals.TEMP_DIR_OPTION}"' in source or f"{internals.TEMP_DIR_OPTION}:" in source, told


def test_ray_prints_deaths_by_the_function_that_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    module: Any = importlib.import_module("ray._private.worker")
    printed = module.print_to_stdstream
    arguments = list(inspect.signature(printed).parameters)
    assert arguments == ["data", "ignore_prefix"], (
        f"Ray: ray._private.worker.print_to_stdstream takes {arguments}"
    )
    with internals.quiet_deaths():
        module.print_to_stdstream({"lines": ["A worker died or was killed while"]}, False)
    assert module.print_to_stdstream is printed
    assert capsys.readouterr() == ("", "")


def test_the_loopback_constant_comes_back() -> None:
    constants: Any = importlib.import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    with internals.clusters_of_several_nodes(not before):
        assert constants.ENABLE_RAY_CLUSTER is not before
    assert constants.ENABLE_RAY_CLUSTER is before


def test_draining_nodes_have_their_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says milliseconds, and 0 where a node goes at no known time."""
    state: Any = importlib.import_module("ray._private.state")
    monkeypatch.setattr(state, "state", SimpleNamespace(get_draining_nodes=lambda: {"a": 1500, "b": 0}))
    assert internals.draining_nodes() == {"a": 1.5, "b": math.inf}


def test_orderly_deaths_have_names_and_numbers() -> None:
    found = internals.orderly_deaths()
    assert {"EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_PREEMPTED", "AUTOSCALER_DRAIN_IDLE"} < found, (
        f"Ray: {found}"
    )
