"""`extends`: a job file that says only what differs from another one, and every way to get that wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.cli.main import main
from convmlp_platform.config.explain.job_file import read_values
from convmlp_platform.config.load import load_job
from convmlp_platform.config.schema import PrepareJob, TrainJob
from convmlp_platform.config.sweep_job import SweepJob
from convmlp_platform.errors import ConfigError

BASE = """\
kind: train
name: base
model: {name: convmlp_s, options: {stem_stride: 2}}
data: {path: d}
augment: {scale: [0.2, 1.0]}
optimizer: {lr: 1e-3, weight_decay: 0.1}
training: {epochs: 5, global_batch_size: 64, micro_batch_size: 32, clip_grad_norm: 1.0}
"""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONVMLP_ROOT", raising=False)
    Path("recipes").mkdir()
    Path("recipes/base.yaml").write_text(BASE)


def extended(text: str, *overrides: str) -> TrainJob:
    Path("x.yaml").write_text(f"extends: recipes/base.yaml\n{text}")
    job = load_job("x.yaml", overrides)
    assert isinstance(job, TrainJob)
    return job


def complaint(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        extended(text, *overrides)
    return str(caught.value)


def test_what_is_said_is_laid_over_the_other_file() -> None:
    job = extended(
        "name: x\naugment: {scale: [0.5, 1.0]}\noptimizer: {lr: 2e-3}\ntraining: {clip_grad_norm: null}\n"
        "model: {options: {gelu: tanh}}\n",
        "optimizer.lr=3e-3",
    )
    assert (job.name, job.optimizer.lr, job.optimizer.weight_decay) == ("x", 3e-3, 0.1)
    assert job.augment.scale == (0.5, 1.0) and job.training.clip_grad_norm is None
    assert job.training.epochs == 5 and job.model.options == {"stem_stride": 2, "gelu": "tanh"}


def test_the_file_is_found_from_the_one_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("recipes/other.yaml").write_text("extends: base.yaml\nname: other\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_job("../recipes/other.yaml").name == "other"
    (tmp_path / "elsewhere/x.yaml").write_text(f"extends: {tmp_path}/recipes/base.yaml\nname: far\n")
    assert load_job("x.yaml").name == "far"


def test_a_source_of_another_kind_is_another_section() -> None:
    Path("prep.yaml").write_text(
        "kind: prepare\nname: p\nsource: {kind: image_folder, path: raw}\noutput: {path: out}\n"
    )
    Path("x.yaml").write_text("extends: prep.yaml\nname: q\nsource: {kind: digits}\n")
    job = load_job("x.yaml")
    assert isinstance(job, PrepareJob) and job.source.kind == "digits" and job.output.path == Path("out")


def test_a_sweep_and_its_job_may_extend() -> None:
    Path("job.yaml").write_text("extends: recipes/base.yaml\nname: tried\n")
    Path("sweep.yaml").write_text(
        "kind: sweep\nname: s\njob: job.yaml\nspace: {optimizer.lr: [1e-3, 2e-3]}\n"
    )
    Path("x.yaml").write_text("extends: sweep.yaml\nname: t\nseed: 3\n")
    job = load_job("x.yaml", ["job.training.epochs=2"])
    assert isinstance(job, SweepJob) and (job.name, job.seed, job.job["name"]) == ("t", 3, "tried")
    assert job.job["training"]["epochs"] == 2 and job.job["data"] == {"path": "d"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("optimizer: {lrr: 1}", "x.yaml: optimizer.lrr: unknown key; did you mean optimizer.lr?"),
        ("optimizer: {lr: fast}", "x.yaml: optimizer.lr: must be a number (got 'fast');"),
        ("kind: evaluate", "x.yaml: extends (=recipes/base.yaml): its kind is 'train', this file's 'evaluate'"),
        ("extends: recipes/base.yaml", "key 'extends' is given twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_here_is_said_of_this_file(text: str, told: str) -> None:
    assert told in complaint(text)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (None, "x.yaml: extends (=recipes/base.yaml): recipes/base.yaml: no such job file"),
        ("- 1", "x.yaml: extends (=recipes/base.yaml): recipes/base.yaml: a job file is a mapping"),
        ("a: [", "x.yaml: extends (=recipes/base.yaml): recipes/base.yaml"),
        (
            "extends: y.yaml",
            "x.yaml: extends (=recipes/base.yaml): recipes/base.yaml extends 'y.yaml' itself, and one level is all "
            "there is",
        ),
        (BASE.replace("1e-3", "-1"), "x.yaml: optimizer.lr: must be greater than 0 (got -1, from recipes/base.yaml)"),
        (BASE + "sead: 1\n", "x.yaml: sead: unknown key (from recipes/base.yaml); did you mean seed?"),
    ],
)  # fmt: skip
def test_what_is_wrong_there_is_said_of_that_file(base: str | None, told: str) -> None:
    file = Path("recipes/base.yaml")
    file.unlink() if base is None else file.write_text(base)
    assert told in complaint("name: x")


@pytest.mark.parametrize("value", ["", "3", "[a.yaml]", "''", "."])
def test_a_name_that_none_is(value: str) -> None:
    Path("x.yaml").write_text(f"extends: {value}\nname: x\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: extends"):
        load_job("x.yaml")


def test_a_value_of_both_is_said_of_the_later(capsys: pytest.CaptureFixture[str]) -> None:
    assert "must be greater than 0 (got -2, from --set)" in complaint("name: x", "optimizer.lr=-2")
    Path("recipes/base.yaml").write_text(BASE.replace("1e-3", "-1"))
    assert extended("optimizer: {lr: 1e-3}").optimizer.lr == 1e-3
    assert main(["check", "x.yaml", "--set", "optimizer.lr=-2"]) == 2
    assert "x.yaml: optimizer.lr: must be greater than 0 (got -2, from --set)" in capsys.readouterr().err


def test_show_tells_two_jobs_apart(capsys: pytest.CaptureFixture[str]) -> None:
    extended("name: x\noptimizer: {lr: 2e-3}")
    assert main(["show", "--diff", "recipes/base.yaml", "x.yaml"]) == 0
    assert capsys.readouterr().out == "name: base → x\noptimizer.lr: 0.001 → 0.002\n"
    assert main(["show", "x.yaml", "--diff", "x.yaml"]) == 0
    assert capsys.readouterr().out == "x.yaml and x.yaml have the same values\n"
    assert main(["show", "x.yaml", "--diff", "nobody"]) == 2
    assert "no run nobody" in capsys.readouterr().err


keys = st.sampled_from(["a", "b", "c"])
nested = st.recursive(
    st.integers(0, 9) | st.none() | st.lists(st.integers(0, 9), max_size=2),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def laid_over(base: Any, own: Any) -> Any:
    """The law: of two mappings each key's, else what is said here."""
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    return base | {key: laid_over(base[key], own[key]) if key in base else own[key] for key in own}


@given(base=st.dictionaries(keys, nested, max_size=3), own=st.dictionaries(keys, nested, max_size=3))
def test_any_values_over_any_others(base: dict[str, Any], own: dict[str, Any]) -> None:
    Path("b.yaml").write_text(yaml.safe_dump({"kind": "train"} | base))
    Path("o.yaml").write_text(yaml.safe_dump({"extends": "b.yaml"} | own))
    values, origins = read_values(Path("o.yaml"))
    assert values == laid_over({"kind": "train"} | base, own)
    assert all(name.split(".")[0] in values for name in origins)
