"""The cluster that kubectl points at: has it what the manifests name?"""

from __future__ import annotations

import base64
import binascii
import json
import subprocess
from collections.abc import Iterator
from typing import Any

from convmlp_platform.errors import ConfigError
from convmlp_platform.kubernetes.pods import AUTH_KEY, AUTH_SECRET, CLAIM, MLFLOW_SECRET, S3_SECRET
from convmlp_platform.kubernetes.sizes import JobPlan

_TIMEOUT_S = 20
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def missing_in_cluster(plan: JobPlan) -> list[str]:
    """Each thing that the job needs and the cluster lacks, with the command that makes it. Secrets' values are looked
    at for being there only, and never printed.

    Raises:
        ConfigError: there is no kubectl, or it reaches no cluster.
    """
    namespace = plan.options.namespace
    if _get("namespace", namespace) is None:
        return [f"namespace {namespace} isn't there: kubectl apply -k k8s/base"]
    return [
        *_secret_problems(plan),
        *_object_problems(plan),
        *_kuberay_problems(),
    ]


def _secret_problems(plan: JobPlan) -> Iterator[str]:
    namespace = plan.options.namespace
    yield from _lacks_key(
        namespace, AUTH_SECRET, (AUTH_KEY,), "openssl rand -hex 32 | tr -d '\\n' | kubectl -n "
        f"{namespace} create secret generic {AUTH_SECRET} --from-file={AUTH_KEY}=/dev/stdin",
    )  # fmt: skip
    if plan.options.external:
        yield from _lacks_key(
            namespace, MLFLOW_SECRET, ("uri",),
            f"kubectl -n {namespace} create secret generic {MLFLOW_SECRET} --from-literal=uri=https://...",
        )  # fmt: skip
        yield from _lacks_key(
            namespace, S3_SECRET, _S3_KEYS,
            f"kubectl -n {namespace} create secret generic {S3_SECRET} --from-env-file=/dev/stdin",
        )  # fmt: skip


def _lacks_key(namespace: str, secret: str, keys: tuple[str, ...], command: str) -> Iterator[str]:
    found = _get("secret", secret, namespace)
    if found is None:
        yield f"Secret {secret} isn't in namespace {namespace}: {command}"
        return
    for key in keys:
        value = (found.get("data") or {}).get(key)
        if value is None:
            yield f"Secret {secret} has no key {key}: delete it, then {command}"
        elif _decoded(value) != _decoded(value).strip() or not _decoded(value):
            yield f"Secret {secret}: {key} is empty, or begins or ends with white space: delete it, then {command}"


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value)
    except binascii.Error:
        return b""


def _object_problems(plan: JobPlan) -> Iterator[str]:
    options = plan.options
    claim = _get("persistentvolumeclaim", CLAIM, options.namespace)
    if claim is None:
        yield f"PersistentVolumeClaim {CLAIM} isn't in namespace {options.namespace}: kubectl apply -k k8s/base"
    elif "ReadWriteMany" not in claim["spec"]["accessModes"]:
        nodes = _get("nodes", None)
        if nodes is not None and len(nodes["items"]) > 1:
            yield (
                f"PersistentVolumeClaim {CLAIM} may be mounted by one node only, and the cluster has "
                f"{len(nodes['items'])}: pods elsewhere would never start; it needs ReadWriteMany"
            )
    if options.priority is not None:
        kind = "workloadpriorityclass.kueue.x-k8s.io" if options.queue else "priorityclass"
        if _get(kind, options.priority) is None:
            yield f"--priority {options.priority}: the cluster has none of this name: kubectl get {kind}"
    if (
        options.queue is not None
        and _get("localqueue.kueue.x-k8s.io", options.queue, options.namespace) is None
    ):
        yield (
            f"--queue {options.queue}: namespace {options.namespace} has no LocalQueue of this name "
            f"(kubectl -n {options.namespace} get localqueue); k8s/overlays/kueue makes one"
        )
    if _get("rayjob.ray.io", plan.name, options.namespace) is not None:
        yield (
            f"RayJob {plan.name} is there already, and wouldn't run again: "
            f"kubectl -n {options.namespace} delete rayjob {plan.name} (the run's files stay), or another --name"
        )


def _kuberay_problems() -> Iterator[str]:
    crd = _get("customresourcedefinition", "rayjobs.ray.io")
    if crd is None:
        yield "KubeRay isn't installed: the cluster knows no RayJob (docs/operations.md, Kubernetes)"
        return
    for version in crd["spec"]["versions"]:
        if version["name"] == "v1":
            fields = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
            lacking = [
                name for name in ("deletionStrategy", "preRunningDeadlineSeconds") if name not in fields
            ]
            if lacking:
                yield f"KubeRay is older than 1.6: its RayJob has no {' and no '.join(lacking)}: upgrade it, CRDs too"


def _get(kind: str, name: str | None, namespace: str | None = None) -> dict[str, Any] | None:
    """The object, or None where there is none of this name, or none of this kind.

    Raises:
        ConfigError: kubectl can't be run, or has no answer.
    """
    command = [
        "kubectl",
        "get",
        kind,
        *([name] if name else []),
        "--output=json",
        f"--request-timeout={_TIMEOUT_S}s",
    ]
    command += ["--namespace", namespace] if namespace else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * _TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise ConfigError("--cluster: kubectl isn't on PATH") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"--cluster: no answer from the cluster in {3 * _TIMEOUT_S} s") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        if "NotFound" in said or "doesn't have a resource type" in said:
            return None
        raise ConfigError(f"--cluster: kubectl get {kind}: {said or 'failed'}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
