"""checkov over all that k8s/ renders, pods of RayJobs and RayClusters included, and hadolint over the image: what they
find is mended, or stands here with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from k8s_manifests import K8S, KUSTOMIZATIONS, ROOT, Document, pods, render

CHECKOV = ROOT / ".venv" / "checkov" / "bin" / "checkov"
HADOLINT = Path(sys.executable).with_name("hadolint")

_PROBES = "KubeRay's operator adds this probe to Ray's pods (kuberay.py); a submitter serves nobody"
ACCEPTED = {
    "CKV_K8S_8": _PROBES,
    "CKV_K8S_9": _PROBES,
    "CKV_K8S_38": "a service account's token: the autoscaler beside the head asks Kubernetes for pods",
    "CKV_K8S_15": "imagePullPolicy Always: an image that kind has loaded, or a node's own, is in no registry; whoever "
    "names one by digest needs no pull either",
    "CKV_K8S_35": "secrets as files: MLflow, Ray and the S3 clients read log-ins from the environment; no container "
    "prints it, and Ray's dashboard hides it",
    "CKV_K8S_40": "uid above 10000: 1000 is the uid of Ray's own images, whose volumes must stay readable; no pod sees "
    "the host's files",
    "CKV_K8S_43": "image by digest: the image is the user's own build; `convmlp k8s render --image` takes a digest",
}
"""checkov's check → the reason why it fails."""
HADOLINT_ACCEPTED = {
    "DL3008": "versions of Debian's packages: security updates come with each build of the base"
}


def as_pods(document: Document) -> list[Document]:
    """What checkov knows: it reads Deployments and the like, but no pods of custom resources."""
    if document["kind"] in ("RayJob", "RayCluster", "RayCronJob"):
        return [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{document['metadata']['name']}-{role}",
                    "namespace": document["metadata"].get("namespace", "convmlp"),
                },
                "spec": spec,
            }
            for role, spec in pods(document)
        ]
    return [document]


@pytest.mark.skipif(not CHECKOV.exists(), reason="checkov isn't installed (make setup)")
def test_checkov_finds_nothing_that_has_no_reason(tmp_path: Path) -> None:
    counted = 0
    for folder in KUSTOMIZATIONS:
        found = [one for document in render(K8S / folder) for one in as_pods(document)]
        counted += sum(one["kind"] == "Pod" for one in found)
        (tmp_path / f"{folder.replace('/', '_')}.yaml").write_text(yaml.safe_dump_all(found))
    assert counted > 10, "pods of Ray's"
    done = subprocess.run(
        [CHECKOV, "-d", tmp_path, "--framework", "kubernetes", "-o", "json", "--compact"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    failed = report["results"]["failed_checks"]
    assert report["summary"]["parsing_errors"] == 0 and report["summary"]["passed"] > 500
    unexplained = {f"{one['check_id']} {one['check_name']}: {one['resource']}" for one in failed}
    assert {one for one in unexplained if one.split()[0] not in ACCEPTED} == set()
    assert {one["check_id"] for one in failed} == set(ACCEPTED), "a reason that nothing needs any more"


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint isn't installed (make setup)")
def test_hadolint_finds_nothing_that_has_no_reason() -> None:
    done = subprocess.run(
        [HADOLINT, "--format", "json", K8S / "Dockerfile"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = {one["code"]: f"line {one['line']}: {one['message']}" for one in json.loads(done.stdout)}
    assert {code: said for code, said in found.items() if code not in HADOLINT_ACCEPTED} == {}
    assert set(found) == set(HADOLINT_ACCEPTED)
