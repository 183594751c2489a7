"""What a job asks for against what a cluster has, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.cluster.capacity import Node, check, uses_gpu, workers_that_fit


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
