"""A run begun before an option existed goes on: what its record lacks is the option's default, and nothing else is."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from convmlp_platform.config.identity import differences, identity_fields, identity_of, stored_value
from convmlp_platform.config.load import parse_job
from convmlp_platform.config.schema import TrainJob

DIGEST = "sha256:" + "0" * 64
WEIGHTS = "sha256:" + "1" * 64


def job_with(**sections: dict[str, Any]) -> TrainJob:
    values: dict[str, Any] = {
        "kind": "train",
        "name": "x",
        "model": {"name": "convmlp_s", "options": {"stem_stride": 2}},
        "data": {"path": "d"},
        "optimizer": {"lr": 0.001},
        "training": {"epochs": 5, "global_batch_size": 64, "micro_batch_size": 16},
    }
    job = parse_job(values | {name: values.get(name, {}) | given for name, given in sections.items()}, "x")
    assert isinstance(job, TrainJob)
    return job


FIELDS = identity_fields(job_with(), DIGEST)
# Without a default there is nothing that a record without them could mean.
REQUIRED = {
    "model.name", "model.options.stem_stride", "optimizer.lr", "training.epochs", "training.global_batch_size",
    "training.micro_batch_size", "data.digest", "data.num_streams", "data.order",
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(FIELDS.keys() - REQUIRED))))
def test_what_a_record_lacks_is_the_default(lacking: set[str]) -> None:
    old = {name: value for name, value in FIELDS.items() if name not in lacking}
    assert differences(old, FIELDS) == []
    assert all(stored_value(old, name) == FIELDS[name] for name in FIELDS)


@given(st.sampled_from(sorted(REQUIRED)))
def test_what_has_no_default_is_a_difference(name: str) -> None:
    old = {key: value for key, value in FIELDS.items() if key != name}
    (line,) = differences(old, FIELDS)
    assert line.startswith(f"{name}: ")


def test_another_value_of_an_option_the_record_lacks_is_shown_with_its_default() -> None:
    old = {name: value for name, value in FIELDS.items() if not name.startswith("augment.")}
    new = identity_fields(job_with(augment={"mixup": 0.8}), DIGEST)
    assert differences(old, new) == ["augment.mixup: 0.0 → 0.8"]


def test_a_field_that_counts_only_now_had_the_value_of_the_job_on_record() -> None:
    """`eval.crop_pct` decided nothing by the record, yet the run was evaluated with it."""
    old = {name: value for name, value in FIELDS.items() if not name.startswith("eval.")}
    was, other = job_with(eval={"crop_pct": 1.0}), job_with(eval={"crop_pct": 0.9})
    recorded = was.model_dump(mode="json")
    assert differences(old, identity_fields(was, DIGEST), recorded) == []
    assert differences(old, identity_fields(other, DIGEST), recorded) == ["eval.crop_pct: 1.0 → 0.9"]
    assert differences(old, identity_fields(other, DIGEST)) == ["eval.crop_pct: 0.875 → 0.9"]


def test_an_option_that_is_gone_is_a_difference() -> None:
    without = identity_fields(job_with(model={"options": {}}), DIGEST)
    assert differences(FIELDS, without) == ["model.options.stem_stride: 2 → not set"]


def test_weights_count_by_their_hash_where_it_is_known() -> None:
    by_alias = job_with(model={"init_from": "models:/convmlp-s@champion"})
    by_version = job_with(model={"init_from": "models:/convmlp-s/3"})
    assert identity_fields(by_alias, DIGEST)["model.init_from"] == "models:/convmlp-s@champion"
    hashed = [identity_fields(job, DIGEST, WEIGHTS) for job in (by_alias, by_version)]
    assert hashed[0] == hashed[1] and hashed[0]["model.init_from"] == WEIGHTS
    assert identity_of(hashed[0]) != identity_of(identity_fields(job_with(), DIGEST))
    assert identity_fields(job_with(), DIGEST, WEIGHTS)["model.init_from"] is None
