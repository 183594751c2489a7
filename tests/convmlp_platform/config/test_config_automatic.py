"""`auto`: the values that follow from a dataset, by rules that no machine and no restart changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prepared import described, digits

from convmlp_platform.config.automatic import AUTO, FIELDS, OF_MACHINES
from convmlp_platform.config.identity import identity_fields
from convmlp_platform.config.load import dump_yaml, json_schema, load_job, parse_job
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.errors import ConfigError, DataError
from convmlp_platform.sweep.sweep_plan import trials_of

FINETUNE = Path(__file__).parents[3] / "jobs" / "finetune_folder.yaml"


def finetune(images: int, *overrides: str, name: str = "photos") -> TrainJob:
    job = load_job(FINETUNE, overrides, lambda _path: described(images, name))
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.parametrize(
    ("images", "batch", "micro", "epochs", "warmup", "decay", "every", "depth"),
    [
        (1, 2, 2, 800, 40, 0.975, 80, 0.0),
        (5, 4, 4, 320, 40, 0.975, 32, 0.0),
        (42, 8, 8, 77, 40, 0.975248, 7, 0.0),
        (360, 32, 32, 36, 40, 0.975309, 3, 0.0),
        (2048, 256, 64, 50, 40, 0.975, 5, 0.0),
        (100_000, 256, 64, 10, 390, 0.99744, 1, None),
        (10_000_000, 256, 64, 10, 39_062, 0.9999, 1, None),
    ],
)
def test_the_rules(
    images: int,
    batch: int,
    micro: int,
    epochs: int,
    warmup: int,
    decay: float,
    every: int,
    depth: float | None,
) -> None:
    job = finetune(images)
    training = job.training
    assert (training.global_batch_size, training.micro_batch_size, training.epochs) == (batch, micro, epochs)
    assert (job.schedule.warmup_steps, training.ema_decay) == (warmup, decay)
    assert (job.eval.every_epochs, job.model.drop_path_rate) == (every, depth)
    assert (job.optimizer.lr, job.tracking.register_as) == (1e-3, job.tracking.register_as)


def test_what_is_given_counts_and_the_rest_follows_from_it() -> None:
    steps = finetune(42, "training.steps=2000")
    assert (steps.training.epochs, steps.training.steps, steps.schedule.warmup_steps) == (None, 2000, 200)
    assert (steps.eval.every_epochs, steps.training.ema_decay, steps.model.drop_path_rate) == (
        38,
        0.995,
        None,
    )
    epochs = finetune(1000, "schedule.warmup_epochs=2", "eval.every_steps=50", "training.epochs=3")
    assert (epochs.schedule.warmup_steps, epochs.eval.every_epochs) == (0, None)
    batch = finetune(1000, "training.global_batch_size=96")
    assert (batch.training.micro_batch_size, batch.training.epochs) == (48, 39)
    assert finetune(1000, "training.micro_batch_size=10").training.global_batch_size == 70
    assert finetune(42, "model.init_from=w.pth").optimizer.lr == 2e-4
    assert finetune(42, "optimizer.name=sgd").optimizer.lr == pytest.approx(0.05)


def test_a_job_that_is_written_out_is_the_same_without_its_dataset(tmp_path: Path) -> None:
    """As workers, restarts from job.json and `convmlp show` have it."""
    job = finetune(42)
    (tmp_path / "x.yaml").write_text(dump_yaml(job))
    assert load_job(tmp_path / "x.yaml") == job
    digest = described(42).digest
    assert identity_fields(job, digest) == identity_fields(finetune(42, "launch.num_workers=1"), digest)
    assert AUTO not in [
        identity_fields(job, digest)[name] for name in FIELDS if not name.startswith(("eval", "tr"))
    ]


@pytest.mark.parametrize(
    ("name", "registered"),
    [
        ("photos", "photos"),
        ("My photos (2)", "My-photos-2"),
        ("a:b/c", "a-b-c"),
        (".x", "x"),
        ("n" * 200, "n" * 128),
    ],
)
def test_the_model_is_named_after_the_dataset(name: str, registered: str) -> None:
    section = finetune(42, name=name).tracking.register_as
    assert section is not None
    assert section.name == registered


def test_a_name_that_no_model_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tracking\.register_as\.name.*'…'.*no letter"):
        finetune(42, "tracking.register_as.name=auto", name="…")
    named = finetune(42, "tracking.register_as.name=mine", name="…").tracking.register_as
    assert named is not None
    assert named.name == "mine"


def test_without_a_dataset_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"auto follows from the dataset at data.path .*not prepared"
    ) as error:
        load_job(FINETUNE, [f"data.path={tmp_path}"])
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ConfigError, match="it is no folder on this machine: name one"):
        load_job(FINETUNE, ["data.path=s3://bucket/photos"])
    with pytest.raises(ConfigError, match="no split 'test'; it has train"):
        finetune(42, "data.train_split=test")

    def away(path: str) -> Any:
        raise DataError(f"data.path: {path} doesn't answer")

    with pytest.raises(ConfigError, match=r"\(=s3://bucket/x\): s3://bucket/x doesn't answer"):
        load_job(FINETUNE, ["data.path=s3://bucket/x"], away)


def test_a_prepared_dataset_is_found_where_the_job_says() -> None:
    job = load_job(FINETUNE, [f"data.path={digits()}"])
    assert isinstance(job, TrainJob)
    assert job.training.global_batch_size == 128


@pytest.mark.parametrize("name", ["training.log_every_steps", "data.image_size", "seed"])
def test_elsewhere_auto_is_no_number(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: must be a whole number"):
        finetune(42, f"{name}=auto")


@pytest.mark.parametrize("value", ["nonsense", "-3", "0", "true", ".inf", "[1]", "{a: 1}", "null", "1e300"])
@pytest.mark.parametrize("name", FIELDS)
def test_values_that_are_wrong_beside_auto_are_the_schemas_to_refuse(name: str, value: str) -> None:
    try:
        finetune(42, f"{name}={value}")
    except ConfigError as error:
        assert name.rpartition(".")[2] in str(error)  # some of the values are right


def test_the_schema_for_editors_takes_auto_where_it_may_stand() -> None:
    assert sorted(auto_fields(json_schema("train"))) == sorted([*FIELDS, *OF_MACHINES])


def auto_fields(schema: dict[str, Any]) -> Iterator[str]:
    def walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, field in node.get("properties", {}).items():
            if {"const": AUTO} in field.get("anyOf", ()):
                yield prefix + name
            for option in (field, *field.get("anyOf", ())):
                if "$ref" in option:
                    yield from walk(schema["$defs"][option["$ref"].rpartition("/")[2]], f"{prefix}{name}.")

    yield from walk(schema["else"], "")


def test_trials_of_a_sweep_decide_for_themselves() -> None:
    values = {
        "kind": "sweep",
        "name": "s",
        "job": {"kind": "train", "model": {"name": "convmlp_tiny"}, "data": {"path": str(digits())},
                "optimizer": {"lr": "auto"},
                "training": {"steps": 500, "global_batch_size": 32, "micro_batch_size": "auto", "ema_decay": "auto"}},
        "space": {"training.steps": [100, 200]},
    }  # fmt: skip
    sweep = parse_job(values, "s.yaml")
    assert isinstance(sweep, SweepJob)
    assert [trial.job.training.ema_decay for trial in trials_of(sweep)] == [0.9, 0.95]
