"""Job files: what is read, and what a user is told about every way to get one wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convmlp_platform.config.load import (
    Job,
    dump_yaml,
    flatten,
    json_schema,
    load_job,
    parse_job,
)
from convmlp_platform.config.schema import PrepareJob, TrainJob
from convmlp_platform.errors import ConfigError

TRAIN = """\
kind: train
name: x
model: {name: convmlp_s}
data: {path: d}
optimizer: {lr: 1e-5}
training: {epochs: 5, global_batch_size: 64, micro_batch_size: 32}
"""
PREPARE = """\
kind: prepare
name: p
source: {kind: image_folder, path: raw}
output: {path: out}
"""


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVMLP_ROOT", raising=False)


def load(text: str, *overrides: str) -> Job:
    Path("x.yaml").write_text(text)
    return load_job("x.yaml", overrides)


def train(*overrides: str, text: str = TRAIN) -> TrainJob:
    job = load(text, *overrides)
    assert isinstance(job, TrainJob)
    return job


def complaint(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "+1e-5", ".1e-4"])
def test_every_way_to_write_a_float(text: str) -> None:
    assert train(f"optimizer.lr={text}").optimizer.lr == 1e-5


def test_what_looks_like_a_number_stays_text_where_it_is_quoted() -> None:
    assert train(
        text=TRAIN + "tracking: {experiment: '1e5', tags: {day: 2026-11-21, at: 10:30}}\n"
    ).tracking.tags == {
        "day": "2026-11-21",
        "at": "10:30",
    }


UNKNOWN = {
    "optimizer.learning_rate": "did you mean optimizer.lr?",
    "optimizer.wd": "did you mean optimizer.weight_decay?",
    "training.epoch": "did you mean training.epochs?",
    "trainning": "did you mean training?",
    "lr": "did you mean optimizer.lr?",
    "batch_size": "did you mean training.global_batch_size?",
    "mixup": "did you mean augment.mixup?",
    "model.zzz": "model has name, num_classes, drop_path_rate, init_from, init_weights, init_head, options",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_key_gets_the_nearest_name(name: str) -> None:
    assert complaint(TRAIN, f"{name}=1") == [f"x.yaml: {name}: unknown key (from --set); {UNKNOWN[name]}"]


WRONG = {
    "training.epochs=-3": "greater than 0 (got -3, from --set)",
    "augment.hflip=2": "at most 1 (got 2, from --set)",
    "seed='7'": "a whole number (got '7', from --set)",
    "seed=yes": "a whole number (got true, from --set)",
    "optimizer.lr=.nan": "a finite number (got NaN, from --set)",
    "engine.strategy=dpp": "ddp, fsdp or deepspeed (got 'dpp', from --set); did you mean ddp?",
    "launch.use_gpu=maybe": "auto, true or false (got 'maybe', from --set)",
    "engine.zero_stage=4": "1, 2 or 3 (got 4, from --set)",
    "name=12": "text (got 12, from --set); write it in quotes: '12'",
    "name=a/b": "letters, digits and any of . _ -, beginning with a letter or digit (got 'a/b', from --set)",
    "augment.scale=[0.1]": "a list of 2 values (from --set)",
    "checkpoint=5": "a section (name: value lines) (got 5, from --set)",
    "data.path=null": "text (got nothing, from --set); it is: folder of the prepared dataset "
    "(it holds manifest.json)",
}


@pytest.mark.parametrize("override", WRONG)
def test_message_of_a_wrong_value(override: str) -> None:
    name = override.partition("=")[0]
    assert complaint(TRAIN, override) == [f"x.yaml: {name}: must be {WRONG[override]}"]


def test_without_set_the_message_is_of_the_file_alone() -> None:
    text = TRAIN.replace("lr: 1e-5", "learning_rate: 1e-5, lr: 1")
    assert complaint(text) == ["x.yaml: optimizer.learning_rate: unknown key; did you mean optimizer.lr?"]
    assert complaint(TRAIN.replace("epochs: 5", "epochs: -3")) == [
        "x.yaml: training.epochs: must be greater than 0 (got -3)"
    ]


def test_every_problem_is_listed_at_once() -> None:
    text = TRAIN.replace("epochs: 5, ", "").replace("lr: 1e-5", "rl: 1e-5") + "foo: 3\n"
    lines = complaint(text, "seed=-1", "oops", "seed.a=1")
    assert lines[0] == "--set oops: expected KEY=VALUE, e.g. --set optimizer.lr=1e-3"
    assert lines[1] == "--set seed.a=1: seed is the value -1 and has no fields"
    assert set(lines[2:]) == {
        "x.yaml: seed: must be at least 0 (got -1, from --set)",
        "x.yaml: optimizer.lr: required, but missing (peak learning rate for the global batch; "
        "never rescaled behind your back; auto: by what the weights start from)",
        "x.yaml: optimizer.rl: unknown key; did you mean optimizer.lr?",
        "x.yaml: training.epochs or training.steps must say how long the run is: give one of them",
        f"x.yaml: foo: unknown key; a job has {', '.join(TrainJob.model_fields)}",
    }


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            ["training.micro_batch_size=31"],
            "training.global_batch_size (=64) must be a multiple of micro_batch_size (=31)",
        ),
        (
            ["launch.num_workers=4"],
            "launch.num_workers (=4) is more than the 2 micro-batches of a step: raise "
            "training.global_batch_size (=64) or lower training.micro_batch_size (=32)",
        ),
        (["data.num_streams=7"], "data.num_streams (=7) must divide training.global_batch_size (=64)"),
        (
            ["schedule.warmup_epochs=6"],
            "schedule.warmup_epochs (=6) is longer than training.epochs (=5)",
        ),
        (
            ["training.steps=7"],
            "training.epochs (=5) and training.steps (=7) are both given: leave one out (training.max_steps ends a "
            "run early)",
        ),
        (
            ["training.steps=7", "training.epochs=null", "schedule.warmup_steps=8"],
            "schedule.warmup_steps (=8) is longer than training.steps (=7)",
        ),
        (
            ["eval.every_steps=7", "eval.every_epochs=1"],
            "eval.every_epochs (=1) and eval.every_steps (=7) are both given: leave one out",
        ),
        (
            ["schedule.warmup_steps=7", "schedule.warmup_epochs=1"],
            "schedule.warmup_epochs (=1) and schedule.warmup_steps (=7) are both given: leave one out",
        ),
        (
            ["schedule.name=step"],
            "schedule.milestones must be given where schedule.name is step, e.g. [8, 11]",
        ),
        (
            ["schedule.milestones=[8]"],
            "schedule.milestones (=[8.0]) is for schedule.name: step, but name is cosine",
        ),
        (
            ["schedule.name=step", "schedule.milestones=[8, 8]"],
            "schedule.milestones (=[8.0, 8.0]) must rise",
        ),
        (
            ["schedule.name=step", "schedule.milestones=[3]", "schedule.cooldown_epochs=1"],
            "schedule.cooldown_epochs (=1): schedule.name: step has no end to cool down from; raise training.epochs",
        ),
        (
            ["engine.precision=fp16", "launch.use_gpu=false"],
            "engine.precision: fp16 needs GPUs, but launch.use_gpu is false: use fp32, or bf16 where the CPU has "
            "instructions for it",
        ),
        (["engine.zero_stage=3"], "engine.zero_stage is for strategy: deepspeed, but strategy is ddp"),
    ],
)
def test_message_of_an_impossible_combination(added: list[str], message: str) -> None:
    assert complaint(TRAIN, *added) == [f"x.yaml: {message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind: trian\n",
            "x.yaml: kind: must be prepare, train, evaluate, promote or sweep (got 'trian'); did you mean train?",
        ),
        ("name: x\n", "x.yaml: kind: required, but missing; one of prepare, train, evaluate, promote, sweep"),
        ("", "x.yaml: a job file is a mapping that begins with `kind: train` or `kind: prepare`"),
        (TRAIN + "name: y\n", "x.yaml:7: key 'name' is given twice (first on line 2)"),
        (TRAIN + "loss: {a: 1, a: 2}\n", "x.yaml:7: key 'a' is given twice (first on line 7)"),
        ("kind: train\n\tname: x\n", "x.yaml:2: found character '\\t' that cannot start any token "
         "(YAML is indented with spaces, never tabs)"),
        ("kind: !!python/object:os.system x\n", "x.yaml:1: could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object:os.system' (only plain YAML: no !tags)"),
        (PREPARE.replace("image_folder", "imagefolder"), "x.yaml: source.kind: must be digits, image_folder, "
         "imagenet, cifar10, cifar100, flowers102, stl10, coco, ade20k or webdataset (got 'imagefolder'); did you "
         "mean image_folder?"),
        (PREPARE.replace("path: raw", "pth: raw"), "x.yaml: source.path: required, but missing\n"
         "x.yaml: source.pth: unknown key; did you mean source.path?"),
        (PREPARE.replace("path: out", "path: out, formats: [webdatset]"), "x.yaml: output.formats.0: must be "
         "webdataset or ffcv (got 'webdatset'); did you mean webdataset?"),
    ],
)  # fmt: skip
def test_message_of_a_wrong_file(text: str, message: str) -> None:
    assert complaint(text) == message.splitlines()


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/pretrain_digits.yaml").write_text(TRAIN)
    for asked in ("jobs/pretrain_digit.yaml", "pretrain_digits", "jobs/pretrain-digits.yml"):
        with pytest.raises(ConfigError, match=r"no such job file; did you mean jobs/pretrain_digits\.yaml\?"):
            load_job(asked)
    with pytest.raises(
        ConfigError, match=r"^jobs is a folder, not a job file; job files there: jobs/pretrain"
    ):
        load_job("jobs")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        load_job("binary.yaml")


def test_overrides_lie_over_the_file_and_the_last_wins() -> None:
    job = train(
        "optimizer.lr=1", "optimizer.lr=2e-3", "tracking.register_as.name=m", "optimizer.betas=[0.8, 0.9]"
    )
    assert job.optimizer.lr == 2e-3
    assert job.optimizer.betas == (0.8, 0.9)
    assert job.tracking.register_as is not None and job.tracking.register_as.alias == "champion"
    text = TRAIN.replace("lr: 1e-5", "lr: 1e-5, betas: [0.5, 0.6]")
    assert train("optimizer.betas.1=0.7", text=text).optimizer.betas == (0.5, 0.7)
    assert complaint(text, "optimizer.betas.2=1") == [
        "--set optimizer.betas.2=1: optimizer.betas is a list of 2: give a number from 0 to 1"
    ]
    assert train("training.clip_grad_norm=1", "training.clip_grad_norm=null").training.clip_grad_norm is None


def test_aliases_of_yaml_become_separate_values() -> None:
    text = TRAIN + "tracking: {tags: &a {k: v}}\nengine: {strategy: deepspeed, deepspeed: *a}\n"
    job = train("tracking.tags.k=w", text=text)
    assert (job.tracking.tags, job.engine.deepspeed) == ({"k": "w"}, {"k": "v"})


def test_paths_become_absolute_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMLP_ROOT", "/shared")
    job = train("model.init_from=w.pth", "checkpoint.path=/abs").resolved()
    assert isinstance(job, TrainJob)
    assert (job.data.path, job.model.init_from, job.checkpoint.path) == ("/shared/d", "/shared/w.pth", "/abs")
    prepare = load(PREPARE).resolved()
    assert isinstance(prepare, PrepareJob)
    assert str(prepare.output.path) == "/shared/out"
    assert prepare.source.model_dump()["path"] == Path("/shared/raw")
    with pytest.raises(ConfigError, match=r"^output\.path: .* not on s3:// storage"):
        load(PREPARE, "output.path=s3://bucket/x").resolved()
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path / "working_dir_files" / "_ray_pkg_1"))
    with pytest.raises(
        ConfigError, match=r"^data\.path: relative path 'd' would lie in Ray's temporary copy"
    ):
        train().resolved()


def test_flatten_gives_scalars_by_dotted_name() -> None:
    flat = flatten(train("optimizer.betas=[0.8, 0.9]", "model.options={stem_stride: 2}"))
    assert flat["optimizer.lr"] == 1e-5
    assert flat["optimizer.betas"] == "[0.8, 0.9]"
    assert flat["model.options.stem_stride"] == 2
    assert flat["training.max_steps"] is None
    assert all(isinstance(value, str | int | float | bool | None) for value in flat.values())


def test_schema_is_valid_and_describes_its_fields() -> None:
    from jsonschema import Draft202012Validator

    for kind in (None, "prepare", "train"):
        Draft202012Validator.check_schema(json_schema(kind))
    schema = json_schema("train")
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "peak learning rate" in schema["$defs"]["OptimizerSection"]["properties"]["lr"]["description"]
    assert schema["else"]["additionalProperties"] is False
    checked = Draft202012Validator(schema)
    whole = {"kind": "train", "name": "x", "model": {"name": "convmlp_s"}}
    assert not checked.is_valid(whole) and checked.is_valid(whole | {"extends": "base.yaml"})
    assert not checked.is_valid(whole | {"extends": 3})


# Half of a surrogate pair is no text: no file in UTF-8 holds it.
words = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
) | st.sampled_from(["1e5", "yes", "null", "~", "2026-11-21", "1:30", "010", "- x", "#", "0x1f", "<<", "="])
numbers = st.floats(1e-12, 1e12)
scalars = words | numbers | st.booleans() | st.none() | st.integers(-9, 9)
options = st.dictionaries(st.sampled_from(["dims", "gelu"]), st.lists(st.floats(-1, 1)) | st.just("tanh"))
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    if draw(st.booleans()):
        output = {"path": draw(names), "samples_per_shard": draw(st.integers(1, 10**9))}
        return parse_job(
            {"kind": "prepare", "name": draw(names), "source": {"kind": "digits"}, "output": output}, "x"
        )
    micro = draw(st.integers(1, 64)) * 2
    values: dict[str, Any] = {
        "kind": "train",
        "name": draw(names),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "model": {"name": draw(words), "options": draw(options)},
        "data": {"path": draw(words)},
        "optimizer": {"lr": draw(numbers), "betas": [draw(st.floats(0, 1)), draw(st.floats(0, 1))]},
        "training": {"epochs": draw(numbers), "global_batch_size": micro * 3, "micro_batch_size": micro},
        "tracking": {"tags": draw(st.dictionaries(words, words))},
        "engine": draw(st.sampled_from([{"strategy": "ddp"}, {"strategy": "deepspeed", "zero_stage": 3}])),
        "launch": {"use_gpu": draw(st.sampled_from(["auto", True, False]))},
    }  # fmt: skip
    return parse_job(values, "x")


@settings(deadline=None, max_examples=150)
@given(jobs())
def test_written_out_and_read_again_a_job_is_the_same(job: Job) -> None:
    Path("again.yaml").write_text(dump_yaml(job), encoding="utf-8")
    assert load_job("again.yaml") == job
