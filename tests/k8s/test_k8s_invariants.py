"""The manifests' promises beyond their schema, read from the files."""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

import pytest
import yaml
from k8s_manifests import (
    K8S,
    ROOT,
    Document,
    cluster_spec,
    containers,
    pods,
    ray_pods,
    source_documents,
    title,
)

from convmlp_platform.config.automatic import with_stand_ins
from convmlp_platform.launch.cluster.worker_environment import secrets_among

DOCUMENTS = source_documents()
PODS = [
    pytest.param(spec, id=f"{title(document)}-{role}")
    for document in DOCUMENTS
    for role, spec in pods(document)
]
RAY_PODS = [
    pytest.param(document, spec, id=f"{title(document)}-{role}")
    for document in DOCUMENTS
    for role, spec in ray_pods(document)
]
RAYJOBS = [document for document in DOCUMENTS if document["kind"] == "RayJob"]
ENTRYPOINTS = sorted({document["spec"]["entrypoint"] for document in RAYJOBS})


def overrides(entrypoint: str) -> tuple[str, list[tuple[list[str], Any]]]:
    """The job file of an entrypoint and its `--set` options as (dotted name's parts, value)."""
    job, *options = shlex.split(entrypoint)
    assert options[0::2] == ["--set"] * (len(options) // 2) and len(options) % 2 == 0, entrypoint
    pairs = [option.split("=", 1) for option in options[1::2]]
    return job, [(name.split("."), yaml.safe_load(value)) for name, value in pairs]


def test_there_are_jobs_and_a_cluster() -> None:
    assert {"RayCluster", "RayJob", "Deployment", "PersistentVolumeClaim"} <= {d["kind"] for d in DOCUMENTS}
    assert {entrypoint.split()[0] for entrypoint in ENTRYPOINTS} >= {
        "jobs/prep_imagenet.yaml",
        "jobs/pretrain_convmlp.yaml",
    }


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_entrypoint_is_an_executable_job_file(entrypoint: str) -> None:
    job, _ = overrides(entrypoint)
    path = ROOT / job
    assert path.is_file(), f"{job} is not in the repository"
    assert os.access(path, os.X_OK), f"{job} is not executable: chmod +x {job}"
    assert path.read_text().startswith("#!/usr/bin/env -S python -m convmlp_platform\n")


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS)
def test_entrypoint_options_fit_the_job(entrypoint: str) -> None:
    adapter = pytest.importorskip(
        "convmlp_platform.config.schema", reason="the package is not installed"
    ).JOB_ADAPTER
    job, options = overrides(entrypoint)
    values = yaml.safe_load((ROOT / job).read_text())
    for (*sections, field), value in options:
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[field] = value
    adapter.validate_python(with_stand_ins(values))  # `auto` is the cluster's to decide


@pytest.mark.parametrize(("document", "spec"), RAY_PODS)
def test_ray_containers_know_token_storage_and_mlflow(document: Document, spec: Document) -> None:
    cluster = cluster_spec(document)
    assert cluster is not None
    for container in spec["containers"]:
        env = {entry["name"]: entry for entry in container["env"]}
        assert env["RAY_AUTH_MODE"]["value"] == "token"
        token = env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        # auth_token is the key that KubeRay's operator reads from authOptions.secretName.
        assert token == {"name": cluster["authOptions"]["secretName"], "key": "auth_token"}
        if container["name"] == "ray-job-submitter":
            assert not any(name.startswith("MLFLOW") for name in env), "it only talks to the head"
            continue
        assert env["CONVMLP_ROOT"]["value"] == "/mnt/convmlp"
        assert env["MLFLOW_TRACKING_URI"]["value"] == mlflow_url()
        for name, key in (("USERNAME", "username"), ("PASSWORD", "password"), ("TOKEN", "token")):
            secret = env[f"MLFLOW_TRACKING_{name}"]["valueFrom"]["secretKeyRef"]
            assert secret == {"name": "convmlp-mlflow", "key": key, "optional": True}


@pytest.mark.parametrize("spec", PODS)
def test_no_secret_is_written_into_a_manifest(spec: Document) -> None:
    for container in spec["containers"]:
        plain = {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}
        assert secrets_among(plain) == []


def mlflow_url() -> str:
    service = next(d for d in DOCUMENTS if d["kind"] == "Service" and d["metadata"]["name"] == "mlflow")
    return f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def test_mlflow_accepts_the_host_names_it_is_called_by() -> None:
    deployment = next(document for document in DOCUMENTS if document["kind"] == "Deployment")
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    (hosts,) = [arg.partition("=")[2].split(",") for arg in args if arg.startswith("--allowed-hosts=")]
    assert mlflow_url().removeprefix("http://") in hosts
    assert "*" not in hosts
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["replicas"] == 1


def test_mlflow_has_the_options_it_is_started_with() -> None:
    server = pytest.importorskip("mlflow.cli", reason="mlflow is not installed").server
    known = {name for parameter in server.params for name in parameter.opts}
    deployment = next(document for document in DOCUMENTS if document["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["mlflow", "server"]
    assert {argument.partition("=")[0] for argument in container["args"]} <= known


@pytest.mark.parametrize("spec", PODS)
def test_pod_meets_the_restricted_profile(spec: Document) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["enableServiceLinks"] is False
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound])


@pytest.mark.parametrize(("document", "spec"), RAY_PODS)
def test_only_a_head_with_an_autoscaler_has_a_token_of_kubernetes(document: Document, spec: Document) -> None:
    scaled = "autoscalerOptions" in (cluster_spec(document) or {})
    is_head = spec["containers"][0]["name"] == "ray-head"
    assert spec["automountServiceAccountToken"] is (scaled and is_head)


@pytest.mark.parametrize("spec", PODS)
def test_every_mount_has_its_volume(spec: Document) -> None:
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    mounts = {
        mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])
    }
    assert mounts == volumes
    claims = {d["metadata"]["name"] for d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    for volume in spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_ray_pods_have_shared_memory_and_storage() -> None:
    for document in DOCUMENTS:
        for role, spec in ray_pods(document):
            if role != "submitter":
                paths = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
                volumes = {volume["name"]: volume for volume in spec["volumes"]}
                assert volumes[paths["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
                assert "persistentVolumeClaim" in volumes[paths["/mnt/convmlp"]]


def test_one_image_everywhere() -> None:
    images = {
        container["image"] for d in DOCUMENTS for _, spec in pods(d) for container in spec["containers"]
    }
    assert len(images) == 1
    assert re.fullmatch(r"convmlp:\d+\.\d+\.\d+", images.pop())


def test_no_secret_is_committed() -> None:
    assert [title(document) for document in DOCUMENTS if document["kind"] == "Secret"] == []
    for path in K8S.rglob("kustomization.yaml"):
        assert "secretGenerator" not in yaml.safe_load(path.read_text()), path
    for document in DOCUMENTS:
        for role, spec in pods(document):
            for container in spec["containers"]:
                for entry in container.get("env", []):
                    secret = re.search("TOKEN|PASSWORD|SECRET|ACCESS_KEY", entry["name"])
                    assert not (secret and "value" in entry), f"{title(document)} {role}: {entry['name']}"


@pytest.mark.parametrize("job", RAYJOBS, ids=title)
def test_a_job_asks_for_just_the_workers_that_its_cluster_has(job: Document) -> None:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    options = {".".join(parts): value for parts, value in overrides(job["spec"]["entrypoint"])[1]}
    if options.get("launch.use_gpu"):
        assert options["launch.num_workers"] == group["replicas"] * int(limits["nvidia.com/gpu"])
    else:
        assert "nvidia.com/gpu" not in limits
        assert options.get("launch.num_workers", 1) <= group["replicas"] * int(limits["cpu"])
    # KubeRay: a DNS label of at most 47 characters, from which it derives the names of the pods.
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])


@pytest.mark.parametrize("job", RAYJOBS, ids=title)
def test_nothing_is_held_by_a_job_that_is_done_nor_repeated(job: Document) -> None:
    spec = job["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["preRunningDeadlineSeconds"] > 0
    assert "shutdownAfterJobFinishes" not in spec, "KubeRay refuses it beside deletionRules"
    rules = {
        (rule["policy"], *rule["condition"].items()) for rule in spec["deletionStrategy"]["deletionRules"]
    }
    for end in (("jobStatus", "SUCCEEDED"), ("jobStatus", "FAILED"), ("jobDeploymentStatus", "Failed")):
        assert ("DeleteWorkers", end, ("ttlSeconds", 0)) in rules
        assert ("DeleteCluster", end, ("ttlSeconds", 3600)) in rules


# Labels of the operator's pod in KubeRay's own files, tags v1.6.2 and v1.7.0: config/manager/manager.yaml; Helm's
# templates/deployment.yaml with its default values.
OPERATORS = {
    "1.6.2 kustomize": {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/component": "kuberay-operator",
    },
    "1.7.0 kustomize": {
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/component": "kuberay-operator",
    },
    "1.6.2 helm": {
        "app.kubernetes.io/name": "kuberay-operator",
        "app.kubernetes.io/instance": "kuberay-operator",
        "app.kubernetes.io/component": "kuberay-operator",
    },
    "1.7.0 helm": {
        "app.kubernetes.io/name": "kuberay-operator",
        "app.kubernetes.io/instance": "our-kuberay",
        "app.kubernetes.io/component": "kuberay-operator",
    },
}


@pytest.mark.parametrize(("labels", "passes"), [
    *(pytest.param(labels, True, id=name) for name, labels in OPERATORS.items()),
    pytest.param({"app.kubernetes.io/name": "kuberay-apiserver"}, False, id="another pod"),
])  # fmt: skip
def test_the_operator_reaches_the_dashboard_of_heads(labels: dict[str, str], passes: bool) -> None:
    policy = next(
        document
        for document in DOCUMENTS
        if document["kind"] == "NetworkPolicy" and document["metadata"]["name"] == "kuberay-to-dashboard"
    )
    (ingress,) = policy["spec"]["ingress"]
    (rule,), (port,) = ingress["from"], ingress["ports"]
    assert port == {"port": 8265, "protocol": "TCP"}
    wanted = rule["podSelector"]["matchLabels"]
    assert (wanted.items() <= labels.items()) is passes


@pytest.mark.parametrize("spec", PODS)
def test_a_pod_may_not_fill_its_nodes_disk(spec: Document) -> None:
    disk = 0
    for volume in spec.get("volumes", []):
        if "emptyDir" in volume:
            size = gibibytes(volume["emptyDir"]["sizeLimit"])
            disk += 0 if volume["emptyDir"].get("medium") == "Memory" else size
    for container in containers(spec):
        bounds = container["resources"]
        assert bounds["requests"]["ephemeral-storage"] == bounds["limits"]["ephemeral-storage"]
    assert gibibytes(spec["containers"][0]["resources"]["limits"]["ephemeral-storage"]) > disk


@pytest.mark.parametrize(("document", "spec"), RAY_PODS)
def test_shared_memory_fits_into_a_containers_memory(document: Document, spec: Document) -> None:
    shm = [
        gibibytes(volume["emptyDir"]["sizeLimit"])
        for volume in spec["volumes"]
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    ]
    assert sum(shm) <= gibibytes(spec["containers"][0]["resources"]["limits"]["memory"]) / 2
    for group in (cluster_spec(document) or {})["workerGroupSpecs"]:
        assert int(group["rayStartParams"]["object-store-memory"]) <= (max(shm, default=1)) * 2**30


def gibibytes(size: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([A-Z]i)", size).groups()  # type: ignore[union-attr]
    return int(number) / {"Gi": 1, "Mi": 2**10}[unit]


def test_mlflows_sqlite_file_is_on_no_volume_that_many_nodes_mount() -> None:
    claims = {d["metadata"]["name"]: d for d in DOCUMENTS if d["kind"] == "PersistentVolumeClaim"}
    with_sqlite = [
        spec
        for document in DOCUMENTS
        for _, spec in pods(document)
        if any("sqlite:" in word for one in containers(spec) for word in one.get("args", []))
    ]
    assert with_sqlite
    for spec in with_sqlite:
        names = [
            v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v
        ]
        assert names and all(claims[name]["spec"]["accessModes"] == ["ReadWriteOnce"] for name in names)
    for document in DOCUMENTS:
        for _, spec in ray_pods(document):
            for container in containers(spec):
                assert not any("sqlite:" in entry.get("value", "") for entry in container["env"])


def test_the_autoscalers_container_meets_the_restricted_profile() -> None:
    scaled = [cluster for d in DOCUMENTS if (cluster := cluster_spec(d)) and "autoscalerOptions" in cluster]
    assert scaled
    for cluster in scaled:
        options = cluster["autoscalerOptions"]
        assert options["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": False,
        }
        assert "image" not in options, "the head's, which an overlay's `images` sets"
        (group,) = cluster["workerGroupSpecs"]
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        head = cluster["headGroupSpec"]["template"]["spec"]
        assert head["automountServiceAccountToken"] is True, "the autoscaler asks Kubernetes"
        env = {entry["name"]: entry.get("value") for entry in head["containers"][0]["env"]}
        assert int(str(env["CONVMLP_WAIT_FOR_CAPACITY_S"])) > 0


def test_kueues_example_covers_what_pods_ask_for() -> None:
    queue = next(document for document in DOCUMENTS if document["kind"] == "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    asked = {
        name
        for document in RAYJOBS
        for _, spec in ray_pods(document)
        for container in containers(spec)
        for name in container["resources"]["requests"]
    }
    assert asked <= set(group["coveredResources"])
    for flavor in group["flavors"]:
        assert {one["name"] for one in flavor["resources"]} == set(group["coveredResources"])
