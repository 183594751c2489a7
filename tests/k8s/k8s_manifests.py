"""Reading k8s/: its kustomizations, the objects in them, and the pods in those."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
KUSTOMIZATIONS = sorted(str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml"))


def renderer() -> list[str] | None:
    """The command that renders a kustomization, or None where none is installed that knows `patches` (kustomize 4)."""
    own = Path(sys.executable).with_name("kubectl")  # `make setup` puts a current one there
    for program, command in ((str(own), "kustomize"), ("kubectl", "kustomize"), ("kustomize", "build")):
        if shutil.which(program) and _new_enough(program):
            return [program, command]
    return None


def _new_enough(program: str) -> bool:
    asked = [program, "version", *(["--client"] if "kubectl" in program else [])]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False).stdout
    version = re.search(r"(?:Kustomize Version: |^)v?(\d+)\.\d+\.\d+", told, re.MULTILINE)
    return version is not None and int(version[1]) >= 4


def render(folder: Path) -> list[Document]:
    """The objects of the kustomization in `folder`; skips the test where no tool renders it."""
    command = renderer()
    if command is None:
        pytest.skip("neither a kubectl of 1.21 or newer nor kustomize 4 is on PATH")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{folder} does not render:\n{done.stderr}"
    assert "deprecated" not in done.stderr, f"{folder}:\n{done.stderr}"
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def source_documents() -> list[Document]:
    """The objects written in k8s/, as they are before any patch: what can be checked without a tool."""
    documents = []
    for path in sorted(K8S.rglob("*.yaml")):
        if path.name != "kustomization.yaml" and not path.name.endswith("-patch.yaml"):
            loaded = yaml.safe_load_all(path.read_text())
            documents += [document for document in loaded if isinstance(document, dict)]
    return documents


def title(document: Document) -> str:
    """`Kind/name`, for messages."""
    return f"{document['kind']}/{document['metadata']['name']}"


def cluster_spec(document: Document) -> Document | None:
    """The Ray cluster that a RayCluster or RayJob describes, None for any other object."""
    spec: Document = document.get("spec", {})
    found: dict[str, Document | None] = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec")}
    return found.get(document["kind"])


def ray_pods(document: Document) -> Iterator[tuple[str, Document]]:
    """`(role, pod spec)` of the head, of each worker group, and of a RayJob's submitter."""
    cluster = cluster_spec(document)
    if cluster is None:
        return
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    if document["kind"] == "RayJob":
        yield "submitter", document["spec"]["submitterPodTemplate"]["spec"]


def containers(spec: Document) -> list[Document]:
    """All containers of a pod, those that run first included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def pods(document: Document) -> Iterator[tuple[str, Document]]:
    """`(role, pod spec)` of every pod that `document` starts, Ray's or a Deployment's."""
    yield from ray_pods(document)
    if document["kind"] == "Deployment":
        yield "deployment", document["spec"]["template"]["spec"]
