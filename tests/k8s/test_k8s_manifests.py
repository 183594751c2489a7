"""Every kustomization renders, and what it renders is valid for Kubernetes and for KubeRay's CRDs."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from k8s_manifests import (
    K8S,
    KUSTOMIZATIONS,
    Document,
    cluster_spec,
    containers,
    pods,
    render,
    source_documents,
    title,
)
from strict_crd import load_schemas, problems, strict

RAY_KINDS = ("RayCluster", "RayJob")
CLUSTER_WIDE = ("Namespace", "ClusterQueue", "ResourceFlavor", "Topology", "WorkloadPriorityClass")


@pytest.fixture(scope="module")
def crds() -> dict[tuple[str, str], dict[str, Any]]:
    folder = os.environ.get("CONVMLP_CRDS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CONVMLP_CRDS names no folder with KubeRay's CustomResourceDefinitions (ray.io_*.yaml)")
    schemas = load_schemas(Path(folder))
    assert all(("ray.io/v1", kind) in schemas for kind in RAY_KINDS), f"{folder} lacks KubeRay's CRDs"
    return schemas


OLDEST = "1.34"
CUSTOM_GROUPS = ("ray.io/", "kueue.x-k8s.io/", "monitoring.coreos.com/")


def validate_core(document: Document) -> None:
    """Against the oldest release of Kubernetes that is looked after, and the newest that is known."""
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(document, version, strict=True)


def is_custom(document: Document) -> bool:
    return document["apiVersion"].startswith(CUSTOM_GROUPS)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_renders_into_one_namespace(name: str) -> None:
    documents = render(K8S / name)
    assert documents
    titles = [title(document) for document in documents]
    assert len(set(titles)) == len(titles)
    for document in documents:
        if document["kind"] not in CLUSTER_WIDE:
            assert document["metadata"]["namespace"] == "convmlp", title(document)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_core_objects_and_pods_are_valid(name: str) -> None:
    for document in render(K8S / name):
        if not is_custom(document):
            validate_core(document)
        for role, spec in pods(document):
            validate_core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}, "spec": spec})


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_custom_objects_are_valid(name: str, crds: dict[tuple[str, str], dict[str, Any]]) -> None:
    for document in render(K8S / name):
        if is_custom(document):
            assert problems(document, crds[document["apiVersion"], document["kind"]]) == [], title(document)


def test_sources_are_valid_without_a_renderer(crds: dict[tuple[str, str], dict[str, Any]]) -> None:
    for document in source_documents():
        if is_custom(document):
            assert problems(document, crds[document["apiVersion"], document["kind"]]) == [], title(document)
        else:
            validate_core(document)


def test_own_image_is_set_in_one_place(tmp_path: Path) -> None:
    """The overlay that k8s/README.md tells a user to write."""
    bases = [
        os.path.relpath(K8S / name, tmp_path)
        for name in ("overlays/external-services", "jobs/pretrain-convmlp", "overlays/gpu")
    ]
    image = {"name": "convmlp", "newName": "registry.example/vision/convmlp", "newTag": "1.2.3"}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": bases, "images": [image]}))
    documents = render(tmp_path)
    images = {
        container["image"]
        for document in documents
        for _, spec in pods(document)
        for container in containers(spec)
    }
    assert images == {"registry.example/vision/convmlp:1.2.3"}
    gpus = {
        title(document): spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"][
            "limits"
        ]
        for document in documents
        if (spec := cluster_spec(document))
    }
    assert len(gpus) == 2
    assert all(limits["nvidia.com/gpu"] == "8" for limits in gpus.values())


def test_core_validation_is_strict() -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    service = next(document for document in source_documents() if document["kind"] == "Service")
    service["spec"]["port"] = 5000
    with pytest.raises(kubernetes_validate.ValidationError, match="port"):
        validate_core(service)


TINY = {
    "type": "object",
    "required": ["count"],
    "properties": {
        "count": {"type": "integer", "format": "int32"},
        "size": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "items": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "maybe": {"type": "string", "nullable": True},
    },
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        (
            {
                "size": "5Gi",
                "labels": {"a": "b"},
                "free": {"x": [1]},
                "items": [{"name": "n"}],
                "maybe": None,
            },
            None,
        ),
        ({"size": 5}, None),
        ({"counts": 1}, "(root): Additional properties are not allowed ('counts' was unexpected)"),
        ({"count": "1"}, "count: '1' is not of type 'integer'"),
        ({"count": True}, "count: True is not of type 'integer'"),
        ({"labels": {"a": 1}}, "labels.a: 1 is not of type 'string'"),
        ({"items": [{"nam": "n"}]}, "items.0: Additional properties are not allowed ('nam' was unexpected)"),
    ],
)
def test_strict_schema_finds_unknown_fields_and_wrong_types(
    change: dict[str, Any], message: str | None
) -> None:
    assert problems({"count": 1, **change}, strict(TINY)) == ([] if message is None else [message])


def test_strict_schema_finds_them_deep_in_kuberays_crds(crds: dict[tuple[str, str], dict[str, Any]]) -> None:
    job = next(document for document in source_documents() if document["kind"] == "RayJob")
    schema = crds["ray.io/v1", "RayJob"]
    misspelt, mistyped = copy.deepcopy(job), copy.deepcopy(job)
    container = misspelt["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")
    assert any("volumeMount" in problem for problem in problems(misspelt, schema))
    mistyped["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "2"
    assert any(
        problem.startswith("spec.rayClusterSpec.workerGroupSpecs.0.replicas")
        for problem in problems(mistyped, schema)
    )


def test_rdma_is_a_patch_of_the_gpu_pods(tmp_path: Path, crds: dict[tuple[str, str], dict[str, Any]]) -> None:
    """What stands commented out in overlays/gpu."""
    gpu = K8S / "overlays/gpu"
    text = (gpu / "kustomization.yaml").read_text()
    values = yaml.safe_load(text.replace("# patches", "patches").replace("#   ", "  "))
    (patch,) = values["patches"]
    for name in ("raycluster.yaml", patch["path"]):
        (tmp_path / name).write_text((gpu / name).read_text())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(values))
    (cluster,) = render(tmp_path)
    assert problems(cluster, crds["ray.io/v1", "RayCluster"]) == []
    (container,) = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert container["resources"]["limits"]["rdma/hca_shared_devices_a"] == "1"
    assert {"name": "NCCL_IB_HCA", "value": "mlx5"} in container["env"]


def test_external_services_need_no_disk_and_no_password_in_words(tmp_path: Path) -> None:
    documents = render(K8S / "overlays/external-services")
    names = {title(document) for document in documents}
    assert "PersistentVolumeClaim/mlflow" not in names and "PersistentVolumeClaim/convmlp-storage" in names
    (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
    assert deployment["spec"]["strategy"]["type"] == "RollingUpdate"
    spec = deployment["spec"]["template"]["spec"]
    assert {volume["name"] for volume in spec["volumes"]} == {"tmp", "auth"}
    words = " ".join(word for one in containers(spec) for word in [*one["command"], *one.get("args", [])])
    assert "sqlite" not in words and "postgresql" not in words
    assert "--app-name=basic-auth" in words
