"""Bad candidates and odd situations through a real registry: refused or decided by the stated rule, on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_models import Toys, make_dataset

from convmlp_platform.cli.main import main
from convmlp_platform.config.promote_job import PromoteJob
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.errors import ConfigError, DataError
from convmlp_platform.models.bundle import WEIGHTS_NAME
from convmlp_platform.promotion.measure import measure, measure_apart
from convmlp_platform.promotion.promote import Promotion, promote
from convmlp_platform.registry.decision_log import Decision
from convmlp_platform.registry.promotions import PromotionDesk
from convmlp_platform.registry.registry import resolve
from convmlp_platform.registry.training_samples import checksums_of_split
from convmlp_platform.tracking.mlflow.client import open_client


@dataclass
class Site:
    """A registry and a dataset; each test has a model of its own there."""

    root: Path
    uri: str
    data: Path
    made: int = 0

    def model(self) -> Toys:
        self.made += 1
        folder = self.root / f"model-{self.made}"
        folder.mkdir()
        return Toys(folder, self.uri, self.data, f"m{self.made}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("promotion")
    return Site(root, f"sqlite:///{root}/mlflow.db", make_dataset(root))


@pytest.fixture
def toys(site: Site, monkeypatch: pytest.MonkeyPatch) -> Toys:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return site.model()


def job_for(toys: Toys, candidate: str = "candidate", **changes: Any) -> PromoteJob:
    values: dict[str, Any] = {
        "kind": "promote",
        "name": "try",
        "model": {"name": toys.name, "candidate": candidate},
        "data": {"path": str(toys.data), "num_workers": 0},
        "output": {"path": str(toys.root / "promotions")},
        "tracking": {"uri": toys.section.uri},
        "launch": {"use_gpu": False},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    return PromoteJob.model_validate(values)


def tried(toys: Toys, candidate: str = "candidate", **changes: Any) -> Promotion:
    return promote(job_for(toys, candidate, **changes), measure, lambda _line: None)


def desk(toys: Toys) -> PromotionDesk:
    return PromotionDesk(toys.section, toys.name)


def champion(toys: Toys) -> str | None:
    with desk(toys) as opened:
        return opened.champion().version


def crown(toys: Toys, amount: float = 0.6) -> str:
    """A version that is champion: `amount` of noise leaves it 78 % of the images (0.3: 84 %, none: 87 %)."""
    version = toys.add(toys.noisy(amount))
    with desk(toys) as opened:
        opened.decide(Decision("promoted", "champion", None, version, "somebody", "first"))
    return version


def val_checksums(toys: Toys) -> Any:
    return checksums_of_split(
        ShardedSplit(str(toys.data), open_manifest(str(toys.data)), "val", "webdataset")
    )


def slow(*values: Any) -> Any:
    """Parameters of the slow tests: 5 s of a core each, and the fast ones show the path."""
    return pytest.param(*values, marks=pytest.mark.slow)


Weights = dict[str, torch.Tensor]
HEAD = "head.weight"


def swapped(toys: Toys) -> Weights:
    return toys.weights | {name: toys.weights[name][[1, 2, 0]] for name in (HEAD, "head.bias")}


def stale(toys: Toys) -> Weights:
    torch.manual_seed(9)
    return toys.weights | {
        HEAD: 0.02 * toys.weights[HEAD] + 0.98 * 0.1 * torch.randn(toys.weights[HEAD].shape)
    }


def quantised(toys: Toys) -> Weights:
    return {
        name: value.sign() if value.is_floating_point() else value for name, value in toys.weights.items()
    }


def filled(value: float) -> Callable[[Toys], Weights]:
    def make(toys: Toys) -> Weights:
        head = toys.weights[HEAD].clone()
        head[0, 0] = value
        return toys.weights | {HEAD: head}

    return make


@pytest.mark.parametrize(
    ("weights", "changes", "reason"),
    [
        (swapped, {}, "it is not better"),
        slow(stale, {}, "it is not better"),
        slow(quantised, {}, "it is not better"),
        slow(filled(float("nan")), {}, "not finite|not all finite"),
        slow(filled(float("inf")), {}, "not finite|not all finite"),
        slow(None, {"mean": (0.9, 0.1, 0.5), "std": (0.05, 2.0, 0.25)}, "it is not better"),
        slow(None, {"image_size": 8}, "it is not better|confidence"),
        slow(lambda toys: toys.noisy(0.601, 1), {}, "it is not better|by chance"),
        slow(lambda toys: toys.noisy(0.6, 2), {"tags": {"metric.top1": "99.7%"}}, "it is not better|by chance|loses"),
        slow(None, {"known": False}, "nobody knows what version 2 was trained on"),
        (None, {"classes": ("green", "blue", "red")}, "class 0 of the model is 'green'"),
    ],
)  # fmt: skip
def test_a_bad_candidate_is_refused(
    toys: Toys, weights: Callable[[Toys], Weights] | None, changes: dict[str, Any], reason: str
) -> None:
    first = crown(toys)
    version = toys.add(None if weights is None else weights(toys), **changes)
    found = tried(toys)
    assert not found.moved and (found.decision.kind, found.decision.version) == ("refused", version)
    assert any(part in found.decision.reason for part in reason.split("|")), found.decision.reason
    assert champion(toys) == first
    with desk(toys) as opened:
        assert [one.kind for one in opened.history()] == ["promoted", "refused"]


def test_a_good_one_passes_and_so_does_one_of_new_data(toys: Toys) -> None:
    crown(toys)
    second = toys.add(toys.noisy(0.3))
    found = tried(toys)
    assert found.moved and found.decision.version == second and "top1 83." in found.decision.reason
    third = toys.add(
        toys.weights, trained_on=np.arange(50, dtype=np.uint64), provenance={"dataset_digest": "sha256:new"}
    )
    moved = tried(toys, rules__confidence=0.6)
    assert moved.moved and champion(toys) == third
    evidence = moved.decision.evidence
    assert evidence["comparison"]["images"] == 600 and evidence["dataset"]["split"] == "val"
    assert (evidence["candidate_seen"], evidence["champion_seen"]) == (0, 0)
    with pytest.raises(ConfigError, match=r"models:/m\d+/3 is champion already"):
        tried(toys)


@pytest.mark.parametrize(("share", "images"), [(1.0, 0), slow(0.05, 0), slow(0.005, 597)])
def test_images_of_the_judgement_that_were_trained_on(toys: Toys, share: float, images: int) -> None:
    crown(toys)
    own = val_checksums(toys)
    toys.add(trained_on=np.concatenate([toys.trained_on, own[: round(share * len(own))]]))
    found = tried(toys)
    assert found.moved == bool(images)
    if images:
        assert found.decision.evidence["images"] == images
    else:
        assert "of the 600 images that it would be judged on" in found.decision.reason


def bundle_file(toys: Toys, version: str) -> Path:
    return resolve(f"models:/{toys.name}/{version}", section=toys.section).bundle / WEIGHTS_NAME


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whose", "damage"),
    [
        ("candidate", "exchanged"),
        *(slow("candidate", damage) for damage in ("cut", "gone")),
        *(slow("champion", damage) for damage in ("cut", "exchanged", "gone")),
    ],
)
def test_weights_that_are_not_what_was_registered(toys: Toys, whose: str, damage: str) -> None:
    first, second = crown(toys), toys.add()
    file = bundle_file(toys, second if whose == "candidate" else first)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "exchanged":
        file.write_bytes(bundle_file(toys, first if whose == "candidate" else second).read_bytes())
    else:
        file.unlink()
    found = tried(toys)
    if whose == "champion":
        assert found.moved and f"version {first}, the champion, can't be judged" in found.decision.reason
    else:
        assert not found.moved and f"version {second} can't be judged" in found.decision.reason


@pytest.mark.slow
def test_the_first_champion_must_know_something(toys: Toys) -> None:
    toys.add(swapped(toys))
    found = tried(toys)
    assert not found.moved and "is not beyond what the commonest class gives" in found.decision.reason
    toys.add()
    assert tried(toys).moved
    assert champion(toys) == "2"


@pytest.mark.slow
def test_a_deleted_champion_leaves_a_rule(toys: Toys) -> None:
    crown(toys, 0.3)
    second = toys.add()
    assert tried(toys, rules__confidence=0.6).moved
    with desk(toys) as opened:
        opened.client.delete_model_version(toys.name, second)
    worst = toys.add(toys.noisy(1.0))
    found = tried(toys)
    assert not found.moved and found.decision.version == worst and found.decision.held == second
    assert "was deleted: compared with version 1, before it" in found.decision.evidence["note"]
    better = toys.add(toys.weights | {"head.bias": toys.weights["head.bias"] + 1e-4})
    assert tried(toys, rules__confidence=0.6).moved and champion(toys) == better


@pytest.mark.slow
def test_one_that_was_promoted_meanwhile_is_compared_with(toys: Toys) -> None:
    first, second, third = crown(toys), toys.add(toys.noisy(0.3)), toys.add(toys.noisy(0.31))
    done: list[str] = []

    def meanwhile(job: Any, weights: str | None, say: Any) -> Any:
        found = measure(job, weights, say)
        if not done:
            done.append("promoted")
            with desk(toys) as opened:
                assert opened.decide(Decision("promoted", "champion", first, second, "other", "faster"))[1]
        return found

    said: list[str] = []
    found = promote(job_for(toys, third), meanwhile, said.append)
    assert "another version became champion meanwhile: compared again" in said
    assert not found.moved and found.decision.held == second and champion(toys) == second
    with desk(toys) as opened:
        kinds = [(one.kind, one.held, one.version) for one in opened.history()]
    assert kinds[1:] == [
        ("promoted", first, second), ("promoted", first, third), ("refused", second, third)
    ]  # fmt: skip


@pytest.mark.slow
def test_latency_and_a_class_can_be_limits(toys: Toys) -> None:
    crown(toys)
    toys.add()
    found = tried(toys, evaluate__latency_batches=3, rules__max_latency_ms=0.001)
    assert not found.moved and "rules.max_latency_ms allows 0.001" in found.decision.reason
    found = tried(toys, evaluate__latency_batches=3, rules__max_latency_ratio=0.001)
    assert not found.moved and "rules.max_latency_ratio allows 0.001" in found.decision.reason


@pytest.mark.slow
def test_the_record_of_training_samples_can_not_be_edited(toys: Toys) -> None:
    crown(toys)
    version = toys.add(trained_on=val_checksums(toys))
    with desk(toys) as opened:
        run = opened.client.get_model_version(toys.name, version).run_id
        folder = Path(opened.client.get_run(run).info.artifact_uri.removeprefix("file://"))
    (folder / "lineage" / "training_samples.bin").write_bytes(b"")
    with pytest.raises(DataError, match="is not what was registered"):
        tried(toys)


def test_wrong_names_are_answered(toys: Toys) -> None:
    toys.add()
    with pytest.raises(
        ConfigError, match=r"has no version or alias '7'; its aliases: candidate; its versions: 1"
    ):
        tried(toys, "7")
    with pytest.raises(ConfigError, match=r"data.split \(=test\): the dataset .* has the splits train, val"):
        tried(toys, data__split="test")
    with pytest.raises(ConfigError, match="no registered model is named 'nobody'; there are: "):
        tried(toys, model__name="nobody")


@pytest.mark.slow
def test_the_commands_as_people_use_them(
    toys: Toys, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Measured in processes of their own."""
    monkeypatch.setenv("CONVMLP_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", toys.section.uri or "")
    toys.add(toys.noisy(0.6))
    promoting = ["registry", "promote", toys.name, "--data", str(toys.data), "--set", "data.num_workers=0"]
    assert main(promoting) == 0
    toys.add(toys.noisy(1.0))
    assert main(promoting) == 3
    told = capfd.readouterr().out
    assert f"models:/{toys.name}@champion is version 1 now" in told and "first champion; top1 78." in told
    assert "refused: version 2 does not become champion" in told and "it is not better" in told
    assert main(["registry", "history", toys.name, "--json"]) == 0
    history = json.loads(capfd.readouterr().out)
    assert [(one["kind"], one["held"], one["version"]) for one in history] == [
        ("promoted", None, "1"), ("refused", "1", "2")
    ]  # fmt: skip
    assert main(["registry", "champion", toys.name, "--on", history[0]["at"]]) == 0
    assert f"models:/{toys.name}/1, since " in capfd.readouterr().out
    assert main(["registry", "champion", toys.name, "--on", "2001-01-01"]) == 0
    assert "had no champion then" in capfd.readouterr().out
    assert main(["registry", "champion", toys.name, "--on", "yesterday"]) == 2
    assert main(["registry", "rollback", toys.name, "--why", "x"]) == 2
    assert "has no earlier champion" in capfd.readouterr().err
    assert main(["registry", "list"]) == main(["registry", "show", toys.name]) == 0
    told = capfd.readouterr().out
    assert "decisions" not in told and "candidate 2, champion 1" in told and "@champion" in told
    outcomes, latency = measure_apart(job_for(toys).evaluation_of("1"), lambda _line: None)
    assert latency is None and outcomes.value(outcomes.all_images()) > 75
    open_client(toys.section.uri or "").set_model_version_tag(toys.name, "1", "weights.sha256", "0" * 64)
    with pytest.raises(ConfigError, match=r"its weights .* are not those that were registered"):
        measure_apart(job_for(toys).evaluation_of("1"), lambda _line: None)


def test_nothing_is_measured_that_can_be_refused_before(toys: Toys) -> None:
    values = job_for(toys).model_dump() | {"rules": {"max_latency_ms": 3}}
    with pytest.raises(ValueError, match=r"rules\.max_latency_ms: set evaluate\.latency_batches"):
        PromoteJob.model_validate(values)
    with pytest.raises(ValueError, match=r"is model\.alias: name another version"):
        job_for(toys, "champion")
