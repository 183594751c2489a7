"""Seconds of pods: the inequalities of `convmlp_platform.kubernetes.graces`, over all rendered pods."""

from __future__ import annotations

import ast

import pytest
from k8s_manifests import ROOT, Document, cluster_spec, ray_pods, source_documents, title

from convmlp_platform.config.sections.execution import LaunchSection
from convmlp_platform.kubernetes import graces

CLUSTERS = [document for document in source_documents() if cluster_spec(document)]
MEASURED_SAVE_S = 26
"""From SIGTERM to the next attempt's first step, under KubeRay's own command lines."""


def seconds(spec: Document) -> tuple[int, int]:
    """Drain and grace of a pod."""
    env = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
    return int(str(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])), spec["terminationGracePeriodSeconds"]


def is_spot(spec: Document) -> bool:
    return any(one["key"] == "cloud.google.com/gke-spot" for one in spec["tolerations"])


@pytest.mark.parametrize("document", CLUSTERS, ids=title)
def test_a_pod_outlives_its_drain_and_its_drain_a_save(document: Document) -> None:
    pods = {role: spec for role, spec in ray_pods(document) if role != "submitter"}
    head_drain, head_grace = seconds(pods["head"])
    for role, spec in pods.items():
        drain, grace = seconds(spec)
        assert grace > drain, role
        if not is_spot(spec):
            assert drain > graces.SAVE_S > MEASURED_SAVE_S, role
            assert drain >= graces.REPLACE_S + graces.SAVE_S, "replacements come up first"
        else:
            # The platform's notice is all there is: the supervisor saves at once, rather than wait for others.
            assert grace <= 30 and drain <= graces.SAVE_S, role
        assert head_drain >= drain, "the driver sees its workers' save through"
    assert head_grace > head_drain
    env = {entry["name"]: entry.get("value") for entry in pods["head"]["containers"][0]["env"]}
    assert graces.SAVE_S < int(str(env["RAY_JOB_STOP_WAIT_TIME_S"])) <= head_drain, "a stopped job saves"


def test_both_kinds_of_pods_are_there() -> None:
    spot = [is_spot(spec) for document in CLUSTERS for role, spec in ray_pods(document) if role == "workers"]
    assert True in spot and False in spot


@pytest.mark.parametrize("document", CLUSTERS, ids=title)
def test_a_lost_node_is_left_before_kuberay_gives_the_job_up(document: Document) -> None:
    for role, spec in ray_pods(document):
        if role != "submitter":
            evicted = {
                one["key"]: one["tolerationSeconds"]
                for one in spec["tolerations"]
                if one["effect"] == "NoExecute"
            }
            assert set(evicted) == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
            there = graces.NODE_MONITOR_S + max(evicted.values()) + graces.HEAD_START_S
            assert there < graces.STATUS_CHECK_S
        else:
            probe = spec["containers"][0]["livenessProbe"]
            patience = probe["periodSeconds"] * probe["failureThreshold"]
            there = graces.NODE_MONITOR_S + graces.EVICT_S + graces.HEAD_START_S
            assert patience < there < probe["initialDelaySeconds"] + 2 * patience


@pytest.mark.parametrize("document", [one for one in CLUSTERS if one["kind"] == "RayJob"], ids=title)
def test_a_job_that_is_submitted_again_waits_for_its_workers(document: Document) -> None:
    """A new head is there before workers have left the lost one: for want of them, the job was refused."""
    head = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry.get("value") for entry in head["env"]}
    assert int(str(env["CONVMLP_WAIT_FOR_CAPACITY_S"])) == document["spec"]["preRunningDeadlineSeconds"]
    assert "launch.use_gpu=" in document["spec"]["entrypoint"] or "prep_" in document["spec"]["entrypoint"]


def test_the_supervisor_counts_with_the_same_seconds() -> None:
    text = (ROOT / "platform/convmlp_platform/launch/supervisor/supervisor.py").read_text()
    (found,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and [getattr(one, "id", "") for one in getattr(node.targets[0], "elts", [])]
        == ["_REPLACE_S", "_HURRY_S"]
    ]
    assert found == (graces.REPLACE_S, graces.SAVE_S)
    assert LaunchSection().preemption_grace_s >= graces.WORKER.drain, (
        "a save isn't given up before its node is"
    )
