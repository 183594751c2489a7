"""What a job asks for against what a cluster has, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import LaunchError
from convmlp_platform.launch.cluster import capacity
from convmlp_platform.launch.cluster.capacity import (
    WAIT_VARIABLE,
    Node,
    _own_cpus,
    check,
    make_room,
    uses_gpu,
    wait_seconds,
    workers_that_fit,
)


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


class Growing:
    """A cluster that has other nodes each time it is looked at, and knows whether it was asked for more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: list[Node], patience: str = "30") -> None:
        self.looks, self.asked = list(looks), 0
        monkeypatch.setattr(capacity, "cluster_nodes", self.look)
        monkeypatch.setattr(capacity, "_asked_for", self.ask)
        monkeypatch.setattr(capacity, "_LOOK_S", 0.01)
        monkeypatch.setenv(WAIT_VARIABLE, patience)

    def look(self) -> list[Node]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    @contextmanager
    def ask(self, job: TrainJob, gpu: bool) -> Iterator[None]:
        self.asked += 1
        yield


def test_room_that_comes_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Growing(monkeypatch, [Node(0, 0)], [Node(0, 0)], [Node(0, 0), Node(8, 1)])
    assert make_room(job(num_workers=2, min_workers=1, use_gpu=True)) == []
    assert cluster.asked == 1
    told = capsys.readouterr().out
    assert "asked the cluster for room for 2 workers (at least 1) with one GPU and 1 CPU each" in told
    assert "the cluster has room after 0 s" in told


def test_room_that_is_there_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Growing(monkeypatch, [Node(4, 0)])
    assert make_room(job(num_workers=2, use_gpu=False)) == []
    assert cluster.asked == 0


def test_room_that_never_comes_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Growing(monkeypatch, [Node(2, 0)], patience="0.05")
    (told,) = make_room(job(num_workers=4, use_gpu=False))
    assert "needs 4 CPUs, the cluster has 2" in told
    assert told.endswith("(asked for, and waited 0 s: CONVMLP_WAIT_FOR_CAPACITY_S)")
    assert cluster.asked == 1


def test_auto_is_not_decided_before_gpus_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Growing(monkeypatch, [Node(8, 0)])
    for problems in (make_room, check):
        (found,) = problems(job(num_workers=1))
        assert "launch.use_gpu: auto can't be decided" in found
    assert cluster.asked == 0
    assert make_room(job(num_workers=1, use_gpu=False)) == []


def test_looking_at_a_cluster_that_grows_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Growing(monkeypatch, [Node(0, 0)])
    assert check(job(num_workers=64, use_gpu=True)) == []
    assert cluster.asked == 0
    monkeypatch.delenv(WAIT_VARIABLE)
    assert "needs 64 GPUs, the cluster has 0" in check(job(num_workers=64, use_gpu=True))[0]
    assert make_room(job(num_workers=64, use_gpu=True)) == check(job(num_workers=64, use_gpu=True))
    assert cluster.asked == 0


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_patience_is_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, text)
    with pytest.raises(LaunchError, match=f"{WAIT_VARIABLE} must be seconds, not '{text}'"):
        wait_seconds()


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
