"""KubeRay's Job that submits, and what it shares with the pods: versions, the token, entries of an environment."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import yaml

Document = dict[str, Any]


@dataclass(frozen=True)
class KubeRay:
    """A version, and all that it does in another way than the other one."""

    tag: str
    open_files: str
    """Of `ulimit -n`."""
    true_false_options: tuple[str, ...]
    """Of `ray start`, whose `false` is handed over; another option that is `false` is left out."""
    submitter_waits: bool
    """Whether the submitter waits for the dashboard; where it doesn't, the first of its pods may fail."""
    submitter_labels: bool


VERSIONS = {
    "1.6": KubeRay("v1.6.2", "65536", ("log-color", "include-dashboard"), False, False),
    "1.7": KubeRay(
        "v1.7.0",
        "${RAY_START_ULIMIT_OPEN_FILES:-65536}",
        ("log-color", "include-dashboard", "include-log-monitor"),
        True,
        True,
    ),
}


def submitter_job(kuberay: KubeRay, rayjob: Document, name: str, dashboard: str) -> Document:
    """The Job of a RayJob; `name` is the cluster's and the job's id, `dashboard` HOST:PORT."""
    metadata, spec = rayjob["metadata"], rayjob["spec"]
    labels = {
        "ray.io/originated-from-cr-name": metadata["name"],
        "ray.io/originated-from-crd": "RayJob",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    template = copy.deepcopy(spec.get("submitterPodTemplate")) or _default_submitter(spec["rayClusterSpec"])
    container = template["spec"]["containers"][0]
    if not container.get("command"):
        container["command"] = ["/bin/bash", "-ce", "--"]
        container["args"] = [submit_command(spec, f"http://{dashboard}", name, kuberay)]
    env = container.setdefault("env", [])
    env += [
        entry("PYTHONUNBUFFERED", "1"),
        entry("RAY_DASHBOARD_ADDRESS", dashboard),
        entry("RAY_JOB_SUBMISSION_ID", name),
    ]
    authenticate(spec["rayClusterSpec"], name, container)
    if kuberay.submitter_labels:
        template.setdefault("metadata", {}).setdefault("labels", {}).update(labels)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": metadata["name"], "namespace": metadata.get("namespace"), "labels": labels},
        "spec": {
            "backoffLimit": spec.get("submitterConfig", {}).get("backoffLimit", 2),
            "template": template,
        },
    }


def submit_command(spec: Document, address: str, job_id: str, kuberay: KubeRay) -> str:
    """One line of shell, run with `-e`. A pod that comes after another finds the job submitted, and follows its log."""
    words = []
    if kuberay.submitter_waits:
        asks = f"import urllib.request; r=urllib.request.urlopen('{address}/api/gcs_healthz', timeout=10); "
        words += [
            f"""until python -c "{asks}exit(0 if b'success' in r.read() else 1)" >/dev/null 2>&1 ;""",
            f'do echo "Waiting for Ray Dashboard GCS to become healthy at {address} ..." ; sleep 2 ; done ;',
        ]
    words.append(f"if ! ray job status --address {address} {job_id} >/dev/null 2>&1 ; then")
    words.append(f"ray job submit --address {address} --no-wait")
    if runtime := spec.get("runtimeEnvYAML"):
        text = json.dumps(yaml.safe_load(runtime), separators=(",", ":"))
        words.append(f"--runtime-env-json {json.dumps(text)}")
    if given := spec.get("metadata"):
        text = json.dumps(given, separators=(",", ":"), sort_keys=True)
        words.append(f"--metadata-json {json.dumps(text)}")
    words.append(f"--submission-id {job_id}")
    for field in ("Cpus", "Gpus"):
        if number := spec.get(f"entrypointNum{field}"):
            words.append(f"--entrypoint-num-{field.lower()} {number:f}")
    if resources := spec.get("entrypointResources"):
        words.append(f"--entrypoint-resources {json.dumps(resources)}")
    words.append(f"-- {spec['entrypoint'].strip()} ; fi ;")
    return " ".join([*words, f"ray job logs --address {address} --follow {job_id}"])


def _default_submitter(cluster: Document) -> Document:
    image = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    resources = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "200Mi"}}
    container = {"name": "ray-job-submitter", "image": image, "resources": resources}
    return {"spec": {"containers": [container], "restartPolicy": "Never"}}


def authenticate(cluster: Document, name: str, container: Document) -> None:
    """The token of `authOptions` in a container's environment, by reference to its Secret."""
    options = cluster.get("authOptions", {})
    if options.get("mode") != "token":
        return
    add(container, entry("RAY_AUTH_MODE", "token"))
    secret = {"name": options.get("secretName") or name[-50:], "key": "auth_token"}
    add(container, {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}})


def add(container: Document, new: Document) -> None:
    """One more entry of the environment, unless the manifest has one of that name."""
    if all(one["name"] != new["name"] for one in container["env"]):
        container["env"].append(new)


def entry(name: str, value: str) -> Document:
    return {"name": name, "value": value}


def field_of(name: str, path: str) -> Document:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
