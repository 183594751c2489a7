"""The model of docs/scaling.md: bytes by strategy, what computing hides, batches that a job's recipe doesn't have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prepared import few_digits
from test_memory_estimate import job

from convmlp_platform.errors import ConfigError
from convmlp_platform.training.preflight.memory import MemoryEstimate
from convmlp_platform.training.preflight.scaling import Interconnect, Speed, scaled, scaling_lines, volumes_of

PARAMETERS = 1_000_000
MEMORY = MemoryEstimate(PARAMETERS, 0, 0)
SPEED = Speed(micro_batch_s=0.030, update_s=0.004)
SLOW = Interconnect(gpus_per_node=8, within=1e9, between=1e8, hop_s=0.0)


@pytest.mark.parametrize(
    ("engine", "gradients", "weights", "updated"),
    [
        ({"strategy": "ddp"}, 2, 0, 0),  # an all-reduce is a scatter and a gather
        ({"strategy": "deepspeed", "zero_stage": 1}, 2, 0, 1),  # as DeepSpeed does, which keeps a part only
        ({"strategy": "deepspeed", "zero_stage": 2}, 6, 0, 1),
        ({"strategy": "deepspeed", "zero_stage": 3}, 3, 6, 0),  # forward and backward of three micro-batches
        ({"strategy": "fsdp"}, 1, 6, 0),
    ],
)
def test_each_strategy_moves_its_bytes(
    engine: dict[str, Any], gradients: int, weights: int, updated: int
) -> None:
    found = volumes_of(job(engine=engine), PARAMETERS, micro_batches=3)
    size = 4 * PARAMETERS
    assert (found.gradients, found.weights, found.updated) == (
        gradients * size,
        weights * size,
        updated * size,
    )
    assert found.total == (gradients + weights + updated) * size


def run(workers: int, network: Interconnect = SLOW, **sections: Any) -> Any:
    return scaled(job(**sections), workers, SPEED, network, MEMORY, steps=100)


def test_one_worker_waits_for_nobody() -> None:
    alone = run(1)  # 64 images in micro-batches of 16
    assert (alone.micro_batches, alone.exposed_s, alone.raised) == (4, 0.0, False)
    assert alone.step_s == pytest.approx(4 * 0.030 + 0.004)
    assert alone.images_per_second == pytest.approx(64 / alone.step_s)


def test_backward_hides_gradients_but_the_last_bucket() -> None:
    within, between = run(4), run(16)
    # 8 MB by 1 GB/s, three quarters of them: hidden in 20 ms of backward. All are less than two buckets of 25 MiB.
    assert within.exposed_s == pytest.approx(8e6 * 3 / 4 / 1e9)
    assert between.exposed_s == pytest.approx(8e6 * 15 / 16 / 1e8)
    unhidden = run(4, Interconnect(within=1e9, hop_s=0.0, overlaps=False))
    assert unhidden.exposed_s == pytest.approx(8e6 * 3 / 4 / 1e9)


def test_sharded_updates_are_divided_and_weights_gathered() -> None:
    sharded = run(4, engine={"strategy": "fsdp"})
    assert sharded.update_s == pytest.approx(0.001)
    weights = 2 * 4e6 * 3 / 4 / 1e9
    assert sharded.exposed_s == pytest.approx(4e6 * 3 / 4 / 1e9 + 0.1 * weights)


def test_more_workers_than_micro_batches_are_another_recipe() -> None:
    wide = run(8)
    assert (wide.batch, wide.raised, wide.micro_batches, wide.steps) == (128, True, 1, 50)
    assert wide.hours == pytest.approx(50 * wide.step_s / 3600)
    assert not run(4).raised


def test_the_table_has_a_line_for_each_number_and_its_cost() -> None:
    given = job(data={"path": str(few_digits())}, training={"epochs": 1000})
    lines = list(scaling_lines(given, [1, 8], images_per_second=1000, price=2.0))
    assert "1,000 images/s on one GPU (given)" in lines[0]
    head, one, eight = (line.split() for line in lines[2:5])
    assert head[-1] == "USD" and [one[0], eight[0]] == ["1", "8"]
    assert eight[1] == "128*" and lines[-2].strip().startswith("* more than the job's")
    steps = 1000 * 479 // 64
    assert float(one[-2]) == pytest.approx(steps * 64 / 1000 / 3600, abs=0.06)
    assumed = list(scaling_lines(given, [1], images_per_second=None, price=None))
    assert "assumed: 40%" in assumed[0] and "USD" not in assumed[2]


def test_check_says_it_for_trainings_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from convmlp_platform.cli.main import main

    file = tmp_path / "job.yaml"
    file.write_text(f"kind: prepare\nname: x\nsource: {{kind: digits}}\noutput: {{path: {tmp_path}/out}}\n")
    assert main(["check", str(file), "--scale", "8,64"]) == ConfigError.exit_code
    assert "--scale is for trainings" in capsys.readouterr().err
    for wrong in ("8,none", "0", ""):
        assert main(["check", str(file), "--scale", wrong]) == 2
        assert "isn't a list of numbers of GPUs, such as 8,64" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--images-per-second", "--price"])
def test_a_speed_or_price_that_is_none_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    from convmlp_platform.cli.main import main

    for wrong in ("-1", "nan", "inf", "many", *(["0"] if option != "--price" else [])):
        assert main(["check", "job.yaml", "--scale", "8", f"{option}={wrong}"]) == 2
        assert f"must be a number {'from' if option == '--price' else 'above'} 0" in capsys.readouterr().err
