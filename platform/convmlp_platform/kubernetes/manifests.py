"""ConfigMap, RayJob and the standing RayCluster around the pods.

Held to KubeRay 1.6 and 1.7, by their sources:

- Nothing is repeated by KubeRay (`backoffLimit: 0`). A repetition is a new cluster, and KubeRay has no way to tell a
  wrong job (exit code 2) from any other failure: `submitterConfig` has a count only, no `podFailurePolicy`. What can be
  survived is survived inside: workers by the supervisor, within its budgets; a lost head by its successor in the same
  cluster, to which the submitter's next pod submits the job again (`submitterConfig.backoffLimit`). The submitter ends
  with 0 where the driver has ended, however it did, so none of its pods follows a driver's failure.
- `deletionRules` end the workers at once, and leave the head an hour, for its dashboard. KubeRay refuses them in three
  cases, each said below.
- `preRunningDeadlineSeconds` ends a job whose pods don't come. An autoscaled job is running once its head is, and
  its driver gives up by itself (CONVMLP_WAIT_FOR_CAPACITY_S).
"""

from __future__ import annotations

from typing import Any

from convmlp_platform.kubernetes.pods import (
    AUTH_SECRET,
    HEAD_OBJECT_STORE_BYTES,
    PART_OF,
    Document,
    autoscaler_options,
    head_template,
    labels,
    submitter_template,
    worker_template,
)
from convmlp_platform.kubernetes.sizes import OBJECT_STORE_BYTES, JobPlan

RAY_VERSION = "2.60.0"
"""Of the image, as constraints.txt pins it; KubeRay chooses probes and options by it."""
HEAD_STAYS_S = 3600
SUBMITTER_PODS = 4
GROUP = "workers"


def job_documents(plan: JobPlan) -> list[Document]:
    """What `kubectl apply` makes the job of, in this order."""
    return [*([_config_map(plan)] if plan.files else []), rayjob(plan)]


def rayjob(plan: JobPlan) -> Document:
    """A RayJob that brings its own cluster and gives it back when it is done."""
    options = plan.options
    metadata = _metadata(plan, plan.name)
    spec: Document = {
        "entrypoint": plan.entrypoint,
        "submissionMode": "K8sJobMode",
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": SUBMITTER_PODS},
        "preRunningDeadlineSeconds": options.patience_s,
    }
    if options.deadline_hours is not None:
        spec["activeDeadlineSeconds"] = int(options.deadline_hours * 3600)
    if options.queue is not None:
        # Kueue suspends and resumes a RayJob, which KubeRay allows where the whole cluster goes in the end.
        spec |= {"suspend": True, "shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 0}
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = options.queue
        if options.priority is not None:
            metadata["labels"]["kueue.x-k8s.io/priority-class"] = options.priority
    else:
        spec["deletionStrategy"] = {"deletionRules": _deletion_rules(options.autoscaled)}
    spec["submitterPodTemplate"] = submitter_template(plan)
    spec["rayClusterSpec"] = cluster_spec(plan)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


def raycluster(plan: JobPlan) -> Document:
    """A standing cluster of the same pods, to submit to by hand."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(plan, plan.name),
        "spec": cluster_spec(plan),
    }


def cluster_spec(plan: JobPlan) -> Document:
    """The Ray cluster of a RayJob or RayCluster."""
    workers = plan.sizes.workers
    fewest = 0 if plan.options.autoscaled else workers.pods
    spec: Document = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token", "secretName": AUTH_SECRET},
        "headGroupSpec": {
            # The driver and the control plane only: training and preparation run on the workers.
            "rayStartParams": {"num-cpus": "0", "object-store-memory": str(HEAD_OBJECT_STORE_BYTES)},
            "template": head_template(plan),
        },
        "workerGroupSpecs": [
            {
                "groupName": GROUP,
                "replicas": fewest,
                "minReplicas": fewest,
                "maxReplicas": workers.pods,
                # Shared memory belongs to the readers; little passes through Ray's object store.
                "rayStartParams": {"object-store-memory": str(OBJECT_STORE_BYTES)},
                "template": worker_template(plan),
            }
        ],
    }
    if plan.options.autoscaled:
        spec |= {"enableInTreeAutoscaling": True, "autoscalerOptions": autoscaler_options()}
    return spec


def _deletion_rules(autoscaled: bool) -> list[Document]:
    """The workers go at once. KubeRay can't end those of an autoscaled cluster alone: there all goes at once."""
    ends: list[dict[str, Any]] = [
        {"jobStatus": "SUCCEEDED"},
        {"jobStatus": "FAILED"},
        # The job never came to run, or was ended by a deadline.
        {"jobDeploymentStatus": "Failed"},
    ]
    first = "DeleteCluster" if autoscaled else "DeleteWorkers"
    rules = [{"policy": first, "condition": end | {"ttlSeconds": 0}} for end in ends]
    if not autoscaled:
        rules += [
            {"policy": "DeleteCluster", "condition": end | {"ttlSeconds": HEAD_STAYS_S}} for end in ends
        ]
    return rules


def _config_map(plan: JobPlan) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, f"{plan.name}-job"),
        "data": plan.files,
    }


def _metadata(plan: JobPlan, name: str) -> Document:
    return {"name": name, "namespace": plan.options.namespace, "labels": labels(plan) | PART_OF}
