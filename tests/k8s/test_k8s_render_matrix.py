"""`convmlp k8s render` over kinds of jobs and options: valid, of sizes that agree, and fit for KubeRay's own rules."""

from __future__ import annotations

import itertools
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from k8s_manifests import ROOT, Document, pods
from strict_crd import load_schemas, problems

from convmlp_platform.cli.main import main
from convmlp_platform.launch.cluster.capacity import WAIT_VARIABLE

TINY = "jobs/pretrain_digits.yaml"
LINES = [
    f"{TINY} --workers 2",
    f"{TINY} --workers 2 --gpus-per-pod 2",
    f"{TINY} --workers 2 --gpus-per-pod 1 --min-workers 1",
    f"{TINY} --workers 2 --gpus-per-pod 1 --min-workers 1 --overlay spot --priority urgent",
    f"{TINY} --workers 2 --gpus-per-pod 1 --queue vision --priority urgent --overlay spot",
    f"{TINY} --overlay external-services --set data.path=s3://bucket/digits --deadline-hours 2 --patience 60",
    f"{TINY} --from-image --name other --namespace vision --set training.epochs=4",
    f"{TINY} --gpus-per-pod 2 --standing big --overlay autoscale",
    "jobs/prep_digits.yaml --workers 3",
    "jobs/evaluate_digits.yaml --gpus-per-pod 1",
    "jobs/promote_convmlp.yaml",
    "jobs/sweep_cifar10_small.yaml --workers 2",
]


def documents(line: str, capsys: pytest.CaptureFixture[str]) -> list[Document]:
    words = shlex.split(line)
    code = main(["k8s", "render", str(ROOT / words[0]) if "--from-image" not in words else words[0],
                 "--image", "registry.example/convmlp:1", *words[1:]])  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    return list(yaml.safe_load_all(out))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("line", LINES)
def test_it_is_valid(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    folder = os.environ.get("CONVMLP_CRDS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CONVMLP_CRDS names no folder with KubeRay's CustomResourceDefinitions (ray.io_*.yaml)")
    schemas = load_schemas(Path(folder))
    for document in documents(line, capsys):
        if document["kind"] == "ConfigMap":
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        else:
            assert problems(document, schemas[document["apiVersion"], document["kind"]]) == []
        for role, spec in pods(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": spec}
            kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("line", LINES)
def test_kuberay_would_take_it(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The operator's own refusals (validation.go of v1.6.2 and v1.7.0), as far as they concern what is rendered."""
    job = documents(line, capsys)[-1]
    if job["kind"] == "RayCluster":
        return
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    assert bool(rules) is not spec.get("shutdownAfterJobFinishes", False), "one of the two"
    if spec.get("suspend"):
        assert spec["shutdownAfterJobFinishes"], "what isn't ended as a whole can't be suspended"
    if cluster.get("enableInTreeAutoscaling"):
        assert "DeleteWorkers" not in {rule["policy"] for rule in rules}
        assert "restartPolicy" not in cluster["headGroupSpec"]["template"]["spec"], "autoscaler v2 sets it"
    for rule in rules:
        assert len(set(rule["condition"]) & {"jobStatus", "jobDeploymentStatus"}) == 1
    for policy, later in itertools.pairwise(("DeleteWorkers", "DeleteCluster")):
        times = [
            {r["condition"]["ttlSeconds"] for r in rules if r["policy"] == one} for one in (policy, later)
        ]
        assert not all(times) or max(times[0]) <= min(times[1])
    assert len(job["metadata"]["name"]) <= 47


def test_sizes_agree(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{TINY} --workers 2 --gpus-per-pod 2 --set launch.cpus_per_worker=3"
    config, job = documents(line, capsys)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert group["replicas"] == group["maxReplicas"] == 1
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert container["resources"]["limits"]["cpu"] == "6"
    entry = job["spec"]["entrypoint"]
    assert "--set launch.num_workers=2" in entry and "--set launch.use_gpu=true" in entry
    assert "--set launch.cpus_per_worker=3" in entry
    # The file comes along as it is.
    assert entry.startswith("convmlp run /etc/convmlp/job/pretrain_digits.yaml ")
    assert config["data"] == {"pretrain_digits.yaml": (ROOT / TINY).read_text()}
    (mounted,) = [
        volume["configMap"]["name"]
        for volume in job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    ]
    assert mounted == config["metadata"]["name"] == "pretrain-digits-job"


def test_a_larger_model_gets_more_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def memory(more: str) -> int:
        job = documents(f"jobs/pretrain_convmlp.yaml --workers 2 --gpus-per-pod 2 {more}", capsys)[-1]
        (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        return int(limits["memory"].removesuffix("Gi"))

    assert memory("--set model.name=convmlp_l --set data.num_workers=12") > memory("") > 0
    assert memory("--memory-gib 99") == 99


def test_an_elastic_job_begins_with_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    job = documents(f"{TINY} --workers 2 --gpus-per-pod 1 --min-workers 1 --patience 300", capsys)[-1]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 2)
    assert "--set launch.min_workers=1" in job["spec"]["entrypoint"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert {"name": WAIT_VARIABLE, "value": "300"} in head["containers"][0]["env"]


def test_a_queued_job_waits_suspended_and_goes_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    job = documents(f"{TINY} --queue vision --priority urgent", capsys)[-1]
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "vision"
    assert labels["kueue.x-k8s.io/priority-class"] == "urgent"
    assert job["spec"]["suspend"] and job["spec"]["ttlSecondsAfterFinished"] == 0
    assert "priorityClassName" not in json.dumps(job)


def test_a_head_never_is_where_nodes_are_taken_away(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = documents(f"{TINY} --gpus-per-pod 1 --overlay spot", capsys)[-1]["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]
    (term,) = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert {one["operator"] for one in term["matchExpressions"]} == {"NotIn"}
    assert {one["effect"] for one in head["tolerations"]} == {"NoExecute"}
    worker = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert {"nodeAffinity", "podAffinity"} == set(worker["affinity"])


def test_keys_of_external_services_come_from_secrets_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for role, spec in pods(documents(f"{TINY} --overlay external-services", capsys)[-1]):
        if role == "submitter":
            assert "envFrom" not in spec["containers"][0], "it only talks to the head"
            continue
        (container,) = spec["containers"]
        env: dict[str, Any] = {entry["name"]: entry for entry in container["env"]}
        assert env["MLFLOW_TRACKING_URI"]["valueFrom"]["secretKeyRef"] == {
            "name": "convmlp-mlflow",
            "key": "uri",
        }, role
        assert container["envFrom"] == [{"secretRef": {"name": "convmlp-s3"}}]


def test_a_job_brings_the_file_that_it_extends(capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = documents("jobs/pretrain_convmlp_m.yaml --workers 8 --gpus-per-pod 8", capsys)
    assert set(config["data"]) == {"pretrain_convmlp_m.yaml", "pretrain_convmlp.yaml"}


def test_what_is_left_to_machines_is_decided_from_the_pods(capsys: pytest.CaptureFixture[str]) -> None:
    job = documents("jobs/pretrain_convmlp.yaml --workers 8 --gpus-per-pod 4 --cpus-per-pod 24", capsys)[-1]
    entry = job["spec"]["entrypoint"]
    assert "--set launch.cpus_per_worker=6 --set data.num_workers=4 --set launch.num_workers=8" in entry
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "24"


def test_a_sweep_brings_its_job_along(capsys: pytest.CaptureFixture[str]) -> None:
    config, job = documents("jobs/sweep_cifar10_small.yaml --workers 2", capsys)
    named = yaml.safe_load((ROOT / "jobs/sweep_cifar10_small.yaml").read_text())["job"]
    assert set(config["data"]) == {"sweep_cifar10_small.yaml", named}
    assert "--set job.launch.use_gpu=false" in job["spec"]["entrypoint"]
