"""The pods: head, workers, submitter. Each meets Kubernetes' pod security profile `restricted`."""

from __future__ import annotations

from typing import Any

from convmlp_platform.kubernetes.fitting import STORAGE
from convmlp_platform.kubernetes.graces import (
    EVICT_S,
    HEAD,
    STOP_S,
    SUBMIT_S,
    SUBMITTER_FAILURES,
    SUBMITTER_PERIOD_S,
    Grace,
)
from convmlp_platform.kubernetes.sizes import JobPlan

Document = dict[str, Any]

AUTH_SECRET, AUTH_KEY = "convmlp-ray-auth", "auth_token"
"""KubeRay's operator reads the token from this key."""
MLFLOW_SECRET, S3_SECRET = "convmlp-mlflow", "convmlp-s3"
CLAIM = "convmlp-storage"
JOB_FOLDER = "/etc/convmlp/job"
HOME = "/cache"
"""On a disk of a stated size: what goes to ~/.cache, ~/.triton and the like, whoever the user is."""
WORKING_FOLDER = "/opt/convmlp"
GPU = "nvidia.com/gpu"
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
}
"""Of nodes that may be taken away: GKE's, AKS's, EKS's, Karpenter's."""
SPOT_TAINTS = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")
"""Of the same nodes, where the platform sets one."""
HEAD_OBJECT_STORE_BYTES = 256 * 2**20
PART_OF = {"app.kubernetes.io/part-of": "convmlp"}

SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Document = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,  # `_mounts` has all that is written
}


def labels(plan: JobPlan) -> dict[str, str]:
    """Kubernetes' recommended labels, by which people and policies find a job's objects."""
    return {
        "app.kubernetes.io/name": plan.kind,
        "app.kubernetes.io/instance": plan.name,
        **PART_OF,
        "app.kubernetes.io/managed-by": "convmlp",
    }


def ray_pod_labels(plan: JobPlan) -> dict[str, str]:
    """Of head and workers. `app.kubernetes.io/name` is left to KubeRay: its Service of a RayJob looks for its own."""
    return {key: label for key, label in labels(plan).items() if key != "app.kubernetes.io/name"}


_ASK_FOR_JOB = """\
import os, urllib.request as request
job = "http://{RAY_DASHBOARD_ADDRESS}/api/jobs/{RAY_JOB_SUBMISSION_ID}".format(**os.environ)
token = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
request.urlopen(request.Request(job, headers=token), timeout=8)
"""


def head_template(plan: JobPlan) -> Document:
    """The head: Ray's control plane and the driver. It trains nothing."""
    sizes = plan.sizes
    container = _container(plan, "ray-head", _resources(sizes.head_cpus, sizes.head_memory, 2 + 1 + 1))
    container["env"] += [*_grace_env(HEAD), _value("RAY_JOB_STOP_WAIT_TIME_S", str(STOP_S))]
    if plan.entrypoint or plan.options.autoscaled:
        # Not only where pods are asked for: a job that is submitted again after its head was lost comes before its
        # workers, which notice the loss after a minute and then start anew.
        container["env"].append(_value("CONVMLP_WAIT_FOR_CAPACITY_S", str(plan.options.patience_s)))
    container["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (("gcs-server", 6379), ("dashboard", 8265), ("client", 10001), ("metrics", 8080))
    ]
    container["volumeMounts"] = _mounts(plan, head=True)
    spec = _pod(plan, container, HEAD) | {"volumes": _volumes(plan, head=True)}
    # The autoscaler's container beside Ray's asks Kubernetes for pods. Nothing else of ours talks to Kubernetes.
    spec["automountServiceAccountToken"] = plan.options.autoscaled
    spec["tolerations"] = _evictions()
    if plan.options.spot:
        spec["affinity"] = _not_on_spot()
    return {"metadata": {"labels": ray_pod_labels(plan)}, "spec": spec}


def worker_template(plan: JobPlan) -> Document:
    """A worker pod."""
    sizes, options = plan.sizes, plan.options
    container = _container(plan, "ray-worker", _resources(sizes.cpus, sizes.memory, sizes.disk, sizes.gpus))
    container["env"] += _grace_env(plan.grace)
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    container["volumeMounts"] = _mounts(plan)
    spec = _pod(plan, container, plan.grace) | {"volumes": _volumes(plan)}
    spec["tolerations"] = _evictions()
    if sizes.gpus:
        spec["tolerations"].append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
        spec |= _near_each_other(plan)
    if options.spot:
        spec["tolerations"] += [
            {"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in SPOT_TAINTS
        ]
        spec["affinity"] = spec.get("affinity", {}) | _on_spot()
    template: Document = {"metadata": {"labels": ray_pod_labels(plan)}, "spec": spec}
    if options.queue is not None:
        # Kueue: near each other where its topology says how nodes lie; without one it does nothing.
        template["metadata"]["annotations"] = {"kueue.x-k8s.io/podset-preferred-topology": HOST}
    return template


def submitter_template(plan: JobPlan) -> Document:
    """The pod that submits the job to the head and prints its log. KubeRay gives it its command.

    It follows the log over a connection that it never asks for a sign of life. Where the head's node is lost it would
    wait for ever, and no other pod would submit the job to the next head. So it is asked whether its head has the job.
    """
    container = _container(plan, "ray-job-submitter", _resources("500m", "512Mi", 1, limits=("1", "1Gi")))
    container["env"] = [*_auth_env(), _value("HOME", "/tmp")]  # it only talks to the head
    container.pop("envFrom", None)
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    container["livenessProbe"] = {
        "exec": {"command": ["python", "-c", _ASK_FOR_JOB]},
        "initialDelaySeconds": SUBMIT_S,
        "periodSeconds": SUBMITTER_PERIOD_S,
        "timeoutSeconds": SUBMITTER_PERIOD_S - 5,
        "failureThreshold": SUBMITTER_FAILURES,
    }
    spec = _pod(plan, container, None) | {
        "restartPolicy": "Never",
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "512Mi"}}],
    }
    return {"metadata": {"labels": labels(plan)}, "spec": spec}


def autoscaler_options() -> Document:
    """The container that KubeRay puts beside the head's: its defaults lack what the profile `restricted` asks for."""
    return {
        "version": "v2",
        "upscalingMode": "Default",
        # A run between two attempts isn't done with its pods; those of a run hold its agents, and are never idle.
        "idleTimeoutSeconds": 300,
        "imagePullPolicy": "IfNotPresent",
        # KubeRay says where it may write; a read-only root was never tried with its mounts.
        "securityContext": CONTAINER_SECURITY | {"readOnlyRootFilesystem": False},
        "resources": _resources("500m", "1Gi", 1),
    }


def _pod(plan: JobPlan, container: Document, grace: Grace | None) -> Document:
    spec: Document = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": SECURITY,
        "terminationGracePeriodSeconds": 30 if grace is None else grace.pod,
        "containers": [container],
    }
    # In a queue it is Kueue's workload that has a priority (a label of the RayJob).
    if plan.options.priority is not None and plan.options.queue is None:
        spec["priorityClassName"] = plan.options.priority
    return spec


def _container(plan: JobPlan, name: str, resources: Document) -> Document:
    container: Document = {
        "name": name,
        "image": plan.options.image,
        "imagePullPolicy": "IfNotPresent",
        "workingDir": WORKING_FOLDER,
        "env": _env(plan),
        "resources": resources,
        "securityContext": CONTAINER_SECURITY,
    }
    if plan.options.external:
        container["envFrom"] = [{"secretRef": {"name": S3_SECRET}}]
    return container


def _env(plan: JobPlan) -> list[Document]:
    external = plan.options.external
    mlflow = (
        _secret("MLFLOW_TRACKING_URI", MLFLOW_SECRET, "uri")
        if external
        else _value("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    )
    return [
        *_auth_env(),
        _value("HOME", HOME),
        _value("CONVMLP_ROOT", STORAGE),
        mlflow,
        # For an MLflow that asks who is there. Without the Secret they aren't set.
        *(
            _secret(f"MLFLOW_TRACKING_{name.upper()}", MLFLOW_SECRET, name, optional=True)
            for name in ("username", "password", "token")
        ),
        # A pod's interface is eth0 by the CRI; left to guess, gloo has picked the loopback.
        _value("GLOO_SOCKET_IFNAME", "eth0"),
        _value("NCCL_SOCKET_IFNAME", "eth0"),
    ]


def _auth_env() -> list[Document]:
    return [_value("RAY_AUTH_MODE", "token"), _secret("RAY_AUTH_TOKEN", AUTH_SECRET, AUTH_KEY)]


def _grace_env(grace: Grace) -> list[Document]:
    return [_value("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", str(grace.drain))]


def _value(name: str, value: str) -> Document:
    return {"name": name, "value": value}


def _secret(name: str, secret: str, key: str, *, optional: bool = False) -> Document:
    reference = {"name": secret, "key": key} | ({"optional": True} if optional else {})
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def _resources(
    cpus: int | str, memory: int | str, disk: int, gpus: int = 0, limits: tuple[str, str] | None = None
) -> Document:
    """Requests and limits; whole numbers of memory and disk are GiB."""
    size = memory if isinstance(memory, str) else f"{memory}Gi"
    rest = {"ephemeral-storage": f"{disk}Gi"} | ({GPU: str(gpus)} if gpus else {})
    most_cpus, most_memory = limits or (str(cpus), size)
    return {
        "requests": {"cpu": str(cpus), "memory": size, **rest},
        "limits": {"cpu": most_cpus, "memory": most_memory, **rest},
    }


def _mounts(plan: JobPlan, head: bool = False) -> list[Document]:
    mounts: list[Document] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": HOME},
        {"name": "storage", "mountPath": STORAGE},
    ]
    if head and plan.files:
        mounts.append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
    return mounts


def _volumes(plan: JobPlan, head: bool = False) -> list[Document]:
    sizes = plan.sizes
    shm, tmp, cache = (1, 2, 1) if head else (sizes.shm, sizes.tmp, sizes.cache)
    volumes: list[Document] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm}Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": f"{tmp}Gi"}},
        {"name": "cache", "emptyDir": {"sizeLimit": f"{cache}Gi"}},
        {"name": "storage", "persistentVolumeClaim": {"claimName": CLAIM}},
    ]
    if head and plan.files:
        volumes.append({"name": "job", "configMap": {"name": f"{plan.name}-job"}})
    return volumes


def _evictions() -> list[Document]:
    return [
        {
            "key": f"node.kubernetes.io/{what}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": EVICT_S,
        }
        for what in ("not-ready", "unreachable")
    ]


def _near_each_other(plan: JobPlan) -> Document:
    """GPU pods of a job: in one zone, as gradients go between them every step; on nodes of their own, so that a node's
    end takes few. Both are wishes."""
    selector = {"matchLabels": {"app.kubernetes.io/instance": plan.name, "ray.io/node-type": "worker"}}
    term = {"weight": 100, "podAffinityTerm": {"labelSelector": selector, "topologyKey": ZONE}}
    return {
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": HOST,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": selector,
            }
        ],
    }


def _on_spot() -> Document:
    """A wish: where no spot node is to be had, others do."""
    terms = [
        {
            "weight": 100,
            "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]},
        }
        for key, value in SPOT_LABELS.items()
    ]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": terms}}


def _not_on_spot() -> Document:
    """A must: the head's end is that of every attempt."""
    expressions = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_LABELS.items()]
    required = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
