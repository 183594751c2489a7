"""KubeRay's part, as a pure function: from a RayJob to the pods, the submitter's Job and the Services that it makes.

For KubeRay 1.6 and 1.7, by the sources of v1.6.2 and v1.7.0 (in ray-operator/controllers/ray: common/pod.go, job.go and
service.go, rayjob_controller.go, raycluster_controller.go), with the operator's default environment and feature gates.
Where the two differ, `KubeRay` in kuberay_submitter.py says it. In the order in which the operator does it:

    RayCluster NAME-xxxxx      of a new RayJob, and a job id of the same form; both anew after a suspension
    head, workers              the templates with labels, token, ray start's parameters, command, environment, probes;
                               workers have an init container that waits for the head
    Services                   the cluster's, by which workers find the head; the RayJob's, for people
    submitter                  a Job, made when the cluster's pods are ready: it submits unless that is done, then logs

Not here, and refused: the autoscaler, and whatever rendered manifests don't have (`_KNOWN`).
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from typing import Any

from kuberay_submitter import VERSIONS, KubeRay, add, authenticate, entry, field_of, submitter_job

Document = dict[str, Any]

GCS_PORT, DASHBOARD_PORT, METRICS_PORT, AGENT_PORT = 6379, 8265, 8080, 52365
_DEFAULT_PORTS = {"client": 10001, "gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "serve": 8000}
APP_NAME = "app.kubernetes.io/name"
_KNOWN = {
    "rayClusterSpec": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template",
    },
}  # fmt: skip
_FIXED_LABELS = ("ray.io/node-type", "ray.io/group", "ray.io/cluster")
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)
}


@dataclass(frozen=True, kw_only=True)
class MadeObjects:
    """What a RayJob becomes: documents as the API server would have them, without status."""

    cluster: str
    job_id: str
    head: Document
    workers: tuple[Document, ...]
    services: tuple[Document, ...]
    submitter: Document


def made_of(rayjob: Document, version: str, suffix: str = "x7k2p") -> MadeObjects:
    """What KubeRay makes of a RayJob.

    Args:
        version: a key of VERSIONS.
        suffix: for the five letters that KubeRay draws for the cluster and the job's id.

    Raises:
        ValueError: the RayJob has a field that this function doesn't know.
    """
    kuberay, metadata, spec = VERSIONS[version], rayjob["metadata"], rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode":
        raise ValueError(f"spec.submissionMode: {spec['submissionMode']} is not modelled, only K8sJobMode")
    groups = cluster.get("workerGroupSpecs", [])
    parts = [("rayClusterSpec", cluster), ("headGroupSpec", cluster["headGroupSpec"])]
    for field, part in [*parts, *(("workerGroupSpecs", group) for group in groups)]:
        if unknown := set(part) - _KNOWN[field]:
            raise ValueError(f"{field}: not modelled: {', '.join(sorted(unknown))}")
    name, namespace = f"{metadata['name']}-{suffix}", metadata.get("namespace", "default")
    fqdn = f"{name}-head-svc.{namespace}.svc.cluster.local"
    head = _pod(kuberay, cluster, None, name, namespace, fqdn, 0)
    workers = [
        _pod(kuberay, cluster, group, name, namespace, fqdn, number)
        for group in groups
        for number in range(group.get("replicas", 0) * max(1, group.get("numOfHosts", 1)))
    ]
    dashboard = f"{fqdn}:{_ports(cluster)['dashboard']}"
    return MadeObjects(
        cluster=name,
        job_id=name,
        head=head,
        workers=tuple(workers),
        services=tuple(_services(cluster, name, metadata["name"], namespace)),
        submitter=submitter_job(kuberay, rayjob, name, dashboard),
    )


def quantity(text: str | int | float) -> float:
    """Kubernetes' notation of a number: `500m`, `4Gi`, `2`."""
    found = re.fullmatch(r"([0-9.]+)([mkMGT]?|[KMGT]i)", str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * _UNITS[found[2]]


def ray_start(kuberay: KubeRay, params: dict[str, str], resources: Document, *, head: bool) -> str:
    """`ray start` with its options in order of their names. What `params` doesn't say follows from the container's
    limits, CPUs from its requests where it has no limit."""
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    options = dict(params)
    if cpus := limits.get("cpu", requests.get("cpu")):
        options.setdefault("num-cpus", str(math.ceil(quantity(cpus))))
    if memory := limits.get("memory"):
        options.setdefault("memory", str(math.ceil(quantity(memory))))
    gpus = [value for key, value in sorted(limits.items()) if key.endswith("gpu") or "nvidia.com/mig-" in key]
    if gpus:
        options.setdefault("num-gpus", str(math.ceil(quantity(gpus[0]))))
    words = []
    for option, value in sorted(options.items()):
        if value.lower() not in ("true", "false") or option in kuberay.true_false_options:
            words.append(f" --{option}={value} ")
        elif value.lower() == "true":
            words.append(f" --{option} ")
    return f"ray start{' --head' if head else ''} {''.join(words)}"


def _pod(
    kuberay: KubeRay,
    cluster: Document,
    group: Document | None,
    name: str,
    namespace: str,
    fqdn: str,
    number: int,
) -> Document:
    """The head's pod, or where there is a `group` a worker's."""
    template: Document = copy.deepcopy((group or cluster["headGroupSpec"])["template"])
    spec, is_head = template["spec"], group is None
    container, kind = spec["containers"][0], "head" if is_head else "worker"
    group_name = "headgroup" if group is None else group["groupName"]
    params = {"metrics-export-port": str(METRICS_PORT), "dashboard-agent-listen-port": str(AGENT_PORT)}
    params |= {"dashboard-host": "0.0.0.0"} if is_head else {"address": f"{fqdn}:{_gcs_port(cluster)}"}
    params |= (group or cluster["headGroupSpec"]).get("rayStartParams", {}) | {"block": "true"}
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": name,
        "ray.io/node-type": kind,
        "ray.io/group": group_name,
        "ray.io/identifier": f"{name}-{kind}"[-63:],
        APP_NAME: "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    own = template.get("metadata", {})
    labels |= {key: value for key, value in own.get("labels", {}).items() if key not in _FIXED_LABELS}
    container.setdefault("env", [])
    if not is_head:
        spec.setdefault("initContainers", []).append(
            _wait_for_head(container, f"{fqdn}:{_gcs_port(cluster)}")
        )
    if not any(port.get("name") == "metrics" for port in container.setdefault("ports", [])):
        container["ports"].append({"name": "metrics", "containerPort": METRICS_PORT})
    for one in [container, *(c for c in spec.get("initContainers", []) if c["name"] == "wait-gcs-ready")]:
        authenticate(cluster, name, one)
    if "plasma-directory" not in params:
        size = {**container["resources"].get("requests", {}), **container["resources"].get("limits", {})}
        _mount(
            spec, container, "shared-mem", "/dev/shm", {"medium": "Memory", "sizeLimit": size.get("memory")}
        )
    start = ray_start(kuberay, params, container.get("resources", {}), head=is_head)
    before = " ".join([*container.get("command", []), *container.get("args", [])])
    if "ray start" not in before:
        ours = f"ulimit -n {kuberay.open_files}; {start}"
        container["command"] = ["/bin/bash", "-c", "--"]
        container["args"] = [f"{before} && {ours}" if before else ours]
    for one in spec.get("initContainers", []):
        one.setdefault("env", []).extend(_addresses(fqdn))
    _set_environment(kuberay, cluster, container, fqdn, start, is_head=is_head)
    _probe(container, params, cluster.get("rayVersion", ""), is_head=is_head)
    prefix = (name if is_head else f"{name}-{group_name}")[:50]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **own,
            "name": f"{prefix}-{kind}-{number:05d}".lower(),
            "namespace": namespace,
            "labels": labels,
        },
        "spec": spec,
    }


def _gcs_port(cluster: Document) -> str:
    port: str = cluster["headGroupSpec"].get("rayStartParams", {}).get("port", str(GCS_PORT))
    return port


def _wait_for_head(container: Document, address: str) -> Document:
    """The init container: it has the worker's image, environment and mounts, and resources of its own."""
    asks = f"ray health-check --address {address}"
    script = f"""
        SECONDS=0
        while true; do
            if (( SECONDS <= 120 )); then
                if {asks} > /dev/null 2>&1; then break; fi
                echo "$SECONDS seconds elapsed: Waiting for GCS to be ready."
            elif {asks}; then
                break
            fi
            sleep 5
        done
        echo "GCS is ready."
    """
    few = {"cpu": "200m", "memory": "256Mi"}
    kept = ("image", "imagePullPolicy", "securityContext", "env", "volumeMounts")
    return {
        "name": "wait-gcs-ready",
        **copy.deepcopy({key: container[key] for key in kept if key in container}),
        "command": ["/bin/bash", "-c", "--"],
        "args": [script],
        "resources": {"limits": dict(few), "requests": dict(few)},
    }


def _set_environment(
    kuberay: KubeRay, cluster: Document, container: Document, fqdn: str, start: str, *, is_head: bool
) -> None:
    port = _gcs_port(cluster)
    env = container["env"]
    if not is_head:
        env += _addresses(fqdn)
    env += [
        *_of_labels(),
        field_of("RAY_CLOUD_INSTANCE_ID", "metadata.name"),
        field_of("RAY_NODE_TYPE_NAME", "metadata.labels['ray.io/group']"),
        entry("KUBERAY_GEN_RAY_START_CMD", start),
    ]
    add(container, entry("RAY_PORT", port))
    add(container, entry("RAY_ADDRESS", f"{'127.0.0.1' if is_head else fqdn}:{port}"))
    add(container, entry("RAY_USAGE_STATS_KUBERAY_IN_USE", "1"))
    if is_head:
        tags = f"kuberay_version={kuberay.tag};kuberay_crd=RayJob"
        env.append(entry("RAY_USAGE_STATS_EXTRA_TAGS", tags))
    add(container, entry("RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "1"))


def _probe(container: Document, params: dict[str, str], ray_version: str, *, is_head: bool) -> None:
    """From Ray 2.53 on one address says whether a node is well; before, a command in the container asks two."""
    agent = params["dashboard-agent-listen-port"]
    asks = f"wget --tries 1 -T 2 -q -O- http://localhost:{agent}/api/local_raylet_healthz | grep success"
    if is_head:
        port = params.get("dashboard-port", str(DASHBOARD_PORT))
        asks += f" && wget --tries 1 -T 10 -q -O- http://localhost:{port}/api/gcs_healthz | grep success"
    numbers = re.match(r"v?(\d+)\.(\d+)", ray_version)
    new = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (2, 53)
    how: Document = {"exec": {"command": ["bash", "-c", asks]}}
    if new:
        how = {"httpGet": {"path": "/api/healthz", "port": int(agent)}}
    for probe, begins, failures in (("livenessProbe", 30, 120), ("readinessProbe", 10, 10)):
        numbers_of = {
            "initialDelaySeconds": begins,
            "timeoutSeconds": 5 if is_head else 2,
            "periodSeconds": 5,
            "successThreshold": 1,
            "failureThreshold": failures,
        }
        container.setdefault(probe, copy.deepcopy(how) | numbers_of)


def _ports(cluster: Document) -> dict[str, int]:
    container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    named = {
        port.get("name") or f"{port['containerPort']}-port": port["containerPort"]
        for port in container.get("ports", [])
    }
    return {"metrics": METRICS_PORT} | (named or _DEFAULT_PORTS)


def _services(cluster: Document, name: str, job: str, namespace: str) -> list[Document]:
    """The cluster's follows a head whose template says another `app.kubernetes.io/name` than KubeRay's; the RayJob's
    doesn't, and then finds no pod."""
    labels = cluster["headGroupSpec"]["template"].get("metadata", {}).get("labels", {})
    selector = {
        "ray.io/cluster": name,
        "ray.io/node-type": "head",
        "ray.io/identifier": f"{name}-head"[-63:],
        APP_NAME: "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    follows = {APP_NAME: labels[APP_NAME]} if APP_NAME in labels else {}
    ports = [{"name": key, "port": port} for key, port in sorted(_ports(cluster).items())]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": f"{owner}-head-svc", "namespace": namespace},
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": selected,
                "ports": ports,
            },
        }
        for owner, selected in ((name, selector | follows), (job, selector))
    ]


def _mount(spec: Document, container: Document, volume: str, path: str, empty_dir: Document) -> None:
    mounts = container.setdefault("volumeMounts", [])
    if any(mount["mountPath"] == path for mount in mounts):
        return
    volumes = spec.setdefault("volumes", [])
    if not any(one["name"] == volume for one in volumes):
        volumes.append(
            {"name": volume, "emptyDir": {key: value for key, value in empty_dir.items() if value}}
        )
    mounts.append({"name": volume, "mountPath": path})


def _addresses(fqdn: str) -> list[Document]:
    return [entry("FQ_RAY_IP", fqdn), entry("RAY_IP", fqdn.split(".")[0])]


def _of_labels() -> list[Document]:
    return [
        field_of("RAY_CLUSTER_NAME", "metadata.labels['ray.io/cluster']"),
        field_of("RAY_CLUSTER_NAMESPACE", "metadata.namespace"),
    ]
