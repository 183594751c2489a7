"""`auto` for what follows from machines: numbers of workers, CPUs and readers, and the precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.cli.main import main
from convmlp_platform.config.automatic import OF_MACHINES
from convmlp_platform.config.identity import identity_fields
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.launch.cluster import capacity, machine_values
from convmlp_platform.launch.cluster.capacity import Node, check, cpu_has_bf16, slow_precision
from convmlp_platform.runs.run_folder import RunFolder, run_path

AUTO = {
    "kind": "train",
    "name": "one",
    "model": {"name": "convmlp_tiny"},
    "data": {"path": "data", "num_workers": "auto"},
    "optimizer": {"lr": 1e-3},
    "engine": {"precision": "auto"},
    "training": {"epochs": 1, "global_batch_size": 1024, "micro_batch_size": 128},
    "launch": {"num_workers": "auto", "cpus_per_worker": "auto"},
}


def decided(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], values: dict[str, Any] | None = None
) -> TrainJob:
    monkeypatch.setattr(machine_values, "_nodes", lambda _address: nodes)
    job = parse_job(values or AUTO, "x.yaml", of_machines=machine_values.decided)
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "readers", "precision"),
    [
        ([Node(2, 0)], 1, 2, 1, "fp32"),
        ([Node(2, 0), Node(4, 0)], 2, 2, 1, "fp32"),
        ([Node(16, 0, fast_bf16=True)], 1, 16, 2, "bf16"),
        ([Node(16, 0, fast_bf16=True), Node(16, 0)], 2, 16, 2, "fp32"),
        ([Node(64, 8, fast_bf16=True)], 8, 8, 6, "bf16"),
        ([Node(96, 4, fast_bf16=True), Node(32, 4, fast_bf16=True)], 8, 8, 6, "bf16"),
        ([Node(96, 16, fast_bf16=True)], 8, 6, 4, "bf16"),  # a step has 8 micro-batches
        ([Node(8, 0), Node(8, 1)], 1, 8, 6, "fp32"),  # a V100
        ([Node(2, 4)], 4, 1, 1, "fp32"),
    ],
)
def test_what_the_machines_give(
    nodes: list[Node],
    workers: int,
    cpus: int,
    readers: int,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    job = decided(monkeypatch, nodes)
    assert (job.launch.num_workers, job.launch.cpus_per_worker) == (workers, cpus)
    assert (job.data.num_workers, job.engine.precision) == (readers, precision)


@given(
    nodes=st.lists(
        st.builds(Node, st.integers(8, 256), st.integers(0, 8), fast_bf16=st.booleans()),
        min_size=1,
        max_size=9,
    ),
    micro=st.sampled_from([32, 128, 1024]),
)
def test_a_job_of_auto_always_fits(nodes: list[Node], micro: int) -> None:
    values = AUTO | {"training": {"epochs": 1, "global_batch_size": 1024, "micro_batch_size": micro}}
    with pytest.MonkeyPatch.context() as patch:
        job = decided(patch, nodes, values)
    assert check(job, nodes) == []
    assert job.launch.num_workers <= 1024 // micro


def test_what_is_given_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    values = AUTO | {
        "engine": {"precision": "bf16"},
        "launch": {"num_workers": 3, "use_gpu": False, "cpus_per_worker": "auto"},
    }
    job = decided(monkeypatch, [Node(16, 4)], values)
    assert (job.launch.num_workers, job.launch.cpus_per_worker, job.engine.precision) == (3, 5, "bf16")


def test_a_run_that_has_begun_keeps_its_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    job = decided(monkeypatch, [Node(8, 1, fast_bf16=True)]).resolved()
    assert job.engine.precision == "bf16"
    from convmlp_platform.config.identity import write_identity

    run_path(job).mkdir(parents=True)
    write_identity(RunFolder(run_path(job), "").path, identity_fields(job, "sha256:0"))
    assert decided(monkeypatch, [Node(2, 0)]).engine.precision == "bf16"


def test_a_mistake_elsewhere_is_said_before_a_cluster_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_address: str) -> list[Node]:
        raise AssertionError

    monkeypatch.setattr(machine_values, "_nodes", asked)
    with pytest.raises(ConfigError, match=r"x\.yaml: sead: unknown key"):
        parse_job(AUTO | {"sead": 1}, "x.yaml", of_machines=machine_values.decided)
    with pytest.raises(
        ConfigError, match=r"x\.yaml: launch\.num_workers: must be a whole number \(got 'auto'\)"
    ):
        parse_job(AUTO, "x.yaml")
    assert OF_MACHINES.keys() == {
        "launch.num_workers", "launch.cpus_per_worker", "data.num_workers", "engine.precision"
    }  # fmt: skip


def test_a_cluster_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    arguments = ["check", str(Path(__file__).parents[3] / "jobs/pretrain_digits.yaml")]
    assert main([*arguments, "--set", "launch.num_workers=auto"]) == 2
    told = capsys.readouterr().err
    assert "launch.num_workers: auto follows from the machines: no Ray cluster can be reached at" in told


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_tile amx_bf16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("nothing", False),
    ],
)
def test_instructions_for_bf16(flags: str, has: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    assert cpu_has_bf16(tmp_path / "cpuinfo") is has
    assert cpu_has_bf16(tmp_path / "none") is False


def test_kinds_of_gpus_by_rays_names() -> None:
    assert capacity._fast_gpus({"GPU": 8, "accelerator_type:A100": 1})
    assert not capacity._fast_gpus({"GPU": 8, "accelerator_type:V100": 1})
    assert not capacity._fast_gpus({"GPU": 8})


def test_bf16_on_a_cpu_is_advised_against() -> None:
    assert slow_precision("engine.precision", "bf16", False, [Node(2, 0)])[0].startswith(
        "advice   engine.precision (=bf16): CPUs without instructions for it take about 10 times as long"
    )
    assert slow_precision("engine.precision", "bf16", False, [Node(2, 0, fast_bf16=True)]) == []
    assert slow_precision("engine.precision", "bf16", True, [Node(2, 1)]) == []
    assert slow_precision("engine.precision", "fp32", False, [Node(2, 0)]) == []
