"""What a job asks for against what a cluster has, without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.cluster.capacity import Node, _own_cpus, check, uses_gpu, workers_that_fit


def job(precision: str = "fp32", **launch: Any) -> TrainJob:
    return TrainJob.model_validate(
        {
            "kind": "train",
            "name": "one",
            "model": {"name": "convmlp_tiny"},
            "data": {"path": "data"},
            "optimizer": {"lr": 1e-3},
            "engine": {"precision": precision},
            "training": {"epochs": 1, "global_batch_size": 1024, "micro_batch_size": 4},
            "launch": launch,
        }
    )


@pytest.mark.parametrize(
    ("launch", "nodes", "words"),
    [
        ({"num_workers": 8}, [Node(16, 1)], "(=8) with one GPU each needs 8 GPUs, the cluster has 1"),
        ({"num_workers": 1, "use_gpu": True}, [Node(4, 0)], "needs 1 GPUs, the cluster has 0"),
        ({"num_workers": 2, "cpus_per_worker": 3}, [Node(4, 0)], "needs 6 CPUs, the cluster has 4"),
        ({"num_workers": 2, "cpus_per_worker": 3}, [Node(2, 0), Node(5, 0)], "have room for 1"),
        ({"num_workers": 2, "placement": "STRICT_PACK"}, [Node(1, 0)] * 2, "the largest has room for 1"),
        ({"num_workers": 2, "placement": "STRICT_SPREAD"}, [Node(8, 0)], "wants 2 nodes"),
    ],
)  # fmt: skip
def test_what_the_cluster_lacks_is_named(launch: dict[str, Any], nodes: list[Node], words: str) -> None:
    problems = check(job(**launch), nodes)
    assert len(problems) == 1
    assert words in problems[0]


def test_room_for_the_fewest_workers_is_enough() -> None:
    assert check(job(num_workers=4, min_workers=2), [Node(2, 0)]) == []
    assert workers_that_fit(job(num_workers=4, min_workers=2), [Node(2, 0), Node(1, 0)], gpu=False) == 3
    assert "launch.min_workers (=2)" in check(job(num_workers=4, min_workers=2), [Node(1, 0)])[0]


def test_fp16_needs_gpus() -> None:
    assert "engine.precision: fp16 needs GPUs" in check(job("fp16", num_workers=1), [Node(4, 0)])[0]
    assert check(job("fp16", num_workers=1), [Node(4, 1)]) == []


def test_auto_takes_gpus_where_there_are_any() -> None:
    assert uses_gpu(job(num_workers=1), [Node(4, 0), Node(4, 2)])
    assert not uses_gpu(job(num_workers=1), [Node(4, 0)])
    assert not uses_gpu(job(num_workers=1, use_gpu=False), [Node(4, 2)])


@given(
    cpus=st.lists(st.integers(0, 8), min_size=1, max_size=5),
    workers=st.integers(1, 12),
    each=st.integers(1, 4),
)
def test_no_problem_means_that_the_workers_fit_one_by_one(cpus: list[int], workers: int, each: int) -> None:
    problems = check(job(num_workers=workers, cpus_per_worker=each), [Node(count, 0) for count in cpus])
    fits = sum(count // each for count in cpus) >= workers
    assert (problems == []) == fits


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "100000 100000"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        {"cpu/cpu.cfs_quota_us": "0", "cpu/cpu.cfs_period_us": "100000"},
        {"cpu.max": "max 100000"},
        {"cpu.max": "350000 100000", "cpuset/cpuset.cpus": "0-1,4"},
        {"cpu.max": "150000 100000", "cpuset/cpuset.cpus": "0,4-6"},
        {"cpu.max": "nonsense", "cpuset/cpuset.cpus": "none"},
    ],
    ids=str,
)
def test_own_cpus_are_counted_as_ray_counts_them(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own count is `ray._private.utils.get_num_cpus`: private, and its import takes a second."""
    import ray._private.utils as theirs

    for name in ("get_num_cpus", "_get_docker_cpus"):
        assert hasattr(theirs, name), (
            f"ray: no ray._private.utils.{name}; with it, compare launch/cluster/capacity.py"
        )
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    read = theirs._get_docker_cpus
    monkeypatch.setattr(
        theirs,
        "_get_docker_cpus",
        lambda: read(
            *(str(tmp_path / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")),
            str(tmp_path / "cpuset/cpuset.cpus"),
            str(tmp_path / "cpu.max"),
        ),
    )
    assert _own_cpus(tmp_path) == int(theirs.get_num_cpus(override_docker_cpu_warning=True))
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    assert _own_cpus(tmp_path) == theirs.get_num_cpus()
