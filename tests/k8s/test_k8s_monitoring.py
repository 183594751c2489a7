"""Alerts and dashboard ask for numbers that a run's driver tells."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from k8s_manifests import K8S, source_documents

from convmlp_platform.launch.supervisor import run_metrics

FOLDER = K8S / "overlays/monitoring"
RAYS_OWN = {"ray_node_gpus_utilization"}


class Told:
    """In place of Ray's Gauge and Counter."""

    def __init__(self, name: str, _description: str, tags: tuple[str, ...]) -> None:
        TOLD[name] = self
        self.tags, self.values = tags, []

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tags)
        self.values.append(value)

    inc = set


TOLD: dict[str, Told] = {}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Told]:
    TOLD.clear()
    monkeypatch.setattr(run_metrics, "Gauge", Told)
    monkeypatch.setattr(run_metrics, "Counter", Told)
    monkeypatch.setattr(run_metrics, "_EVERY_S", 0.0)
    return TOLD


def expressions() -> list[str]:
    rules = yaml.safe_load((FOLDER / "rules.yaml").read_text())["spec"]["groups"]
    panels = json.loads((FOLDER / "convmlp.json").read_text())["panels"]
    return [rule["expr"] for group in rules for rule in group["rules"]] + [
        target["expr"] for panel in panels for target in panel["targets"]
    ]


def test_they_ask_for_what_is_told(told: dict[str, Told], tmp_path: object) -> None:
    run_metrics.RunMetrics("run", K8S / "README.md", 2)
    exported = {
        f"ray_{name}{'_total' if 'cause' in one.tags else ''}": set(one.tags) for name, one in told.items()
    }
    asked = expressions()
    for text in asked:
        names = set(re.findall(r"\bray_\w+", text))
        assert names and names <= set(exported) | RAYS_OWN, text
        assert text.count("(") == text.count(")")
        for name in names - RAYS_OWN:
            (labels,) = re.findall(r"by \(([^)]*)\)", text)[:1]
            assert set(labels.split(", ")) <= exported[name], text
    assert {name for text in asked for name in re.findall(r"\bray_convmlp\w+", text)} == set(exported)


def test_a_driver_tells_them(told: dict[str, Told]) -> None:
    metrics = run_metrics.RunMetrics("run", K8S / "README.md", 4)
    metrics.look(0, 4)
    metrics.look(7, 4)
    metrics.look(7, 4)
    metrics.ended("hardware")
    assert told["convmlp_step"].values == [7]
    assert len(told["convmlp_last_step_timestamp_seconds"].values) == 1, "only when it gets further"
    assert told["convmlp_last_checkpoint_timestamp_seconds"].values[-1] == (K8S / "README.md").stat().st_mtime
    assert told["convmlp_workers"].values == [4, 4, 4, 0]
    assert told["convmlp_workers_wanted"].values == [4]
    assert told["convmlp_attempts_ended"].values == [1]


def test_prometheus_may_call_the_port_that_is_scraped() -> None:
    documents = {d["kind"] + "/" + d["metadata"]["name"]: d for d in source_documents()}
    policy = documents["NetworkPolicy/prometheus-to-metrics"]["spec"]
    monitor = documents["PodMonitor/convmlp"]["spec"]
    assert policy["podSelector"] == monitor["selector"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    ports = {
        port["name"]: port["containerPort"]
        for document in source_documents()
        if document["kind"] == "RayCluster"
        for port in document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert policy["ingress"][0]["ports"] == [{"port": ports[endpoint["port"]], "protocol": "TCP"}]
