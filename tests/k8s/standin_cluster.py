"""A stand-in for Kubernetes and KubeRay's operator around the pods of `standin_pod`: nodes, Services, submitters.

    StandIn     the API server's state, and a thread that is all kubelets and the Job controller
    Operator    a thread that is KubeRay: pods in the numbers that the RayJob says, the submitter when they are ready,
                the job's status from the dashboard, workers that go when it is done; may be stopped and started anew

Deviations: a lost node's pods are evicted after `evict_s`, not 50 + 30 s; a node has no size; a pod's image is there.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kuberay import Document, MadeObjects, made_of
from standin_pod import SUBNET, Caller, Network, Pod, memory_cgroup

SECRET = "convmlp-ray-auth"
CLAIM = "convmlp-storage"
_ENDS = ("SUCCEEDED", "FAILED", "STOPPED")
_FIRST_BACKOFF_S = 10.0


class StandIn:
    """Use as a context manager.

    Args:
        storage: the folder behind the claim that all pods share.
    """

    def __init__(self, folder: Path, storage: Path, *, nodes: int = 8, evict_s: float = 5.0) -> None:
        self.folder, self.evict_s = folder, evict_s
        self.prefix = f"convmlp-{os.getpid()}-{secrets.token_hex(2)}"
        self.network = Network(self.prefix)
        self.caller = Caller(self.network.namespace)
        self.operator_namespace, self.operator_address = self.network.join("operator")
        self.operator_caller = Caller(self.operator_namespace)
        self.cgroup = memory_cgroup(self.prefix)
        self.token = secrets.token_hex(32)
        self.objects: dict[tuple[str, str], Any] = {
            ("Secret", SECRET): {"auth_token": self.token},
            ("PersistentVolumeClaim", CLAIM): storage,
        }
        self.nodes = {f"node-{number}": True for number in range(nodes)}
        self.pods: list[Pod] = []
        self.services: list[Document] = []
        self.policies: list[Document] = []
        self.error: Exception | None = None
        self._lost_at: dict[str, float] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for pod in self.pods:
            pod.close()
        for caller in (self.caller, self.operator_caller):
            caller.close()
        self.network.close()
        if self.cgroup:
            with suppress(OSError):
                self.cgroup.rmdir()

    def create(self, document: Document) -> Pod:
        """A pod on the node that has fewest."""
        with self._lock:
            busy = {node: 0 for node, up in self.nodes.items() if up}
            for pod in self.living():
                if pod.node in busy:
                    busy[pod.node] += 1
            name = f"{document['metadata']['name']}-{secrets.token_hex(2)}"
            document = document | {"metadata": document["metadata"] | {"name": name}}
            pod = Pod(
                self.network, document, min(busy, key=lambda one: busy[one]), self.folder / name, self.objects
            )
            self.pods.append(pod)
            self._names()
            self._firewalls()
            return pod

    def living(self, *, kind: str | None = None) -> list[Pod]:
        """Pods that the API server knows, those that are being deleted or whose node is lost among them."""
        pods = [pod for pod in self.pods if not pod.gone]
        return [pod for pod in pods if kind is None or pod.labels.get("ray.io/node-type") == kind]

    def lose_node(self, node: str) -> None:
        """All its pods at once, without a word."""
        with self._lock:
            self.nodes[node] = False
            self._lost_at[node] = time.monotonic()
            lost = [pod for pod in self.living() if pod.node == node]
            for pod in lost:
                self.network.cut(pod.address)
            for pod in lost:
                pod.lose()

    def apply(self, policies: Iterable[Document]) -> None:
        """NetworkPolicies, as firewall rules of each pod."""
        with self._lock:
            self.policies = list(policies)
            self._firewalls()

    def _work(self) -> None:
        try:
            self._step_all()
        except Exception as error:  # told to whoever waits
            self.error = error

    def _step_all(self) -> None:
        while not self._stop.wait(0.2):
            with self._lock:
                for pod in self.living():
                    if pod.lost and time.monotonic() - self._lost_at[pod.node] > self.evict_s:
                        pod.evict()
                    pod.step(self.caller)

    def _names(self) -> None:
        """DNS: names of headless Services lead to the newest pod that they select."""
        lines = ["127.0.0.1 localhost"]
        for service in self.services:
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            found = [
                pod
                for pod in self.living()
                if service["spec"]["selector"].items() <= pod.labels.items()
                and not pod.deleted
                and not pod.lost
            ]
            if found:
                names = (f"{name}.{namespace}.svc.cluster.local", f"{name}.{namespace}.svc", name)
                lines.append(f"{found[-1].address} {' '.join(names)}")
        for pod in self.living():
            pod.hosts.write_text("\n".join([*lines, f"{pod.address} {pod.name}", ""]))

    def _firewalls(self) -> None:
        for pod in self.living():
            rules = "\n".join(["add table inet pods", "delete table inet pods", *self._rules(pod), ""])
            where = ["ip", "netns", "exec", pod.namespace]
            subprocess.run([*where, "nft", "-f", "-"], input=rules, text=True, check=True)

    def _rules(self, pod: Pod) -> list[str]:
        """A pod that a policy selects is reached by what a policy allows, by its node, and by answers."""
        chosen = [one for one in self.policies if _selects(one["spec"]["podSelector"], pod.labels)]
        if not chosen:
            return []
        allowed = []
        for policy in chosen:
            for rule in policy["spec"]["ingress"]:
                ports = [
                    f"{port['protocol'].lower()} dport {port['port']}" for port in rule.get("ports", [])
                ] or [""]
                for peer in rule["from"]:
                    sources = [other.address for other in self.living() if _allows(peer, other.labels)]
                    if "namespaceSelector" in peer and _selects(peer["podSelector"], OPERATOR_LABELS):
                        sources = [self.operator_address]
                    allowed += [f"ip saddr {source} {port} accept" for source in sources for port in ports]
        chain = "inet pods input"
        always = ["iif lo accept", "ct state established,related accept", f"ip saddr {SUBNET}.1 accept"]
        always.append("meta l4proto { icmp, ipv6-icmp } accept")
        return [
            "add table inet pods",
            f"add chain {chain} {{ type filter hook input priority 0; policy drop; }}",
            *(f"add rule {chain} {rule}" for rule in [*always, *allowed]),
        ]


OPERATOR_LABELS = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}


def _selects(selector: Document, labels: dict[str, str]) -> bool:
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def _allows(peer: Document, labels: dict[str, str]) -> bool:
    """Whether a pod of the policy's own namespace may call."""
    return "namespaceSelector" not in peer and _selects(peer["podSelector"], labels)


class Operator:
    """KubeRay for one RayJob."""

    def __init__(self, site: StandIn, rayjob: Document, version: str, suffix: str = "x7k2p") -> None:
        self.site, self.rayjob, self.version = site, rayjob, version
        self.made: MadeObjects = made_of(rayjob, version, suffix)
        self.slots: list[tuple[Document, Pod | None]] = []
        self.submitters: list[Pod] = []
        self.job_status = ""
        self.deployment_status = "Initializing"
        self.statuses: list[str] = []
        """Each that the job had, in order; `no answer` where the dashboard gave none."""
        self.suspended = False
        self.error: Exception | None = None
        self._again_at = 0.0
        self.start()

    def start(self) -> None:
        """A new process of the operator: what it knows is what the API server has."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def suspend(self) -> None:
        """All pods are deleted at once, the submitter's too."""
        self.suspended, self.deployment_status = True, "Suspending"
        for pod in [*(pod for _, pod in self.slots if pod), *self.submitters]:
            if not pod.gone and not pod.deleted:
                pod.delete()

    def resume(self, suffix: str) -> None:
        """A new cluster and a new job id."""
        assert self.deployment_status == "Suspended"
        self.made = made_of(self.rayjob, self.version, suffix)
        self.slots, self.submitters, self.job_status = [], [], ""
        self.deployment_status, self.suspended = "Initializing", False
        self.statuses.append("resumed")

    @property
    def head(self) -> Pod:
        pod = self.slots[0][1]
        assert pod is not None
        return pod

    @property
    def workers(self) -> list[Pod]:
        return [pod for _, pod in self.slots[1:] if pod is not None]

    def submit_here(self, rayjob: Document, suffix: str) -> Pod:
        """The submitter's pod of another RayJob, which submits to this one's head as if that were its own."""
        made = made_of(rayjob, self.version, suffix)
        template = made.submitter["spec"]["template"]
        container = template["spec"]["containers"][0]
        container["args"] = [
            container["args"][0].replace(f"//{made.cluster}-head-svc", f"//{self.made.cluster}-head-svc")
        ]
        metadata = {"namespace": made.submitter["metadata"]["namespace"], **template.get("metadata", {})}
        return self.site.create({"metadata": metadata | {"name": made.job_id}, "spec": template["spec"]})

    def status_of(self, job_id: str) -> tuple[int, Document]:
        """What the dashboard says of a job, asked as the operator does: the status code, and the answer."""
        url = f"http://{self.head.address}:8265/api/jobs/{job_id}"
        code, body = self.site.operator_caller.get(url, self.site.token)
        return code, json.loads(body) if code == 200 else {}

    def log(self) -> str:
        """What the submitter's pods have printed: `kubectl logs job/NAME`."""
        return "".join(pod.text() for pod in self.submitters)

    @property
    def done(self) -> bool:
        for one in (self, self.site):
            if one.error is not None:
                raise AssertionError(f"the {type(one).__name__} has failed") from one.error
        return self.deployment_status in ("Complete", "Failed")

    def _work(self) -> None:
        try:
            self._look_after()
        except Exception as error:  # told to whoever waits
            self.error = error

    def _look_after(self) -> None:
        while not self._stop.wait(0.5):
            if self.suspended:
                if all(pod.gone for _, pod in self.slots if pod) and all(pod.gone for pod in self.submitters):
                    self.deployment_status = "Suspended"
                continue
            self._reconcile()

    def _reconcile(self) -> None:
        if not self.slots:
            self.site.services = list(self.made.services)
            self.slots = [(document, None) for document in (self.made.head, *self.made.workers)]
        if self.deployment_status not in ("Complete", "Failed"):
            # A pod that is being deleted counts until it is gone; so does one of a lost node, until it is evicted.
            self.slots = [
                (document, self.site.create(document) if pod is None or pod.gone else pod)
                for document, pod in self.slots
            ]
        if not self.submitters:
            if not all(pod and pod.ready for _, pod in self.slots):
                return
            self._submit()
            self.deployment_status = "Running"
        finished = self._follow_submitter()
        if self.deployment_status in ("Complete", "Failed"):
            return
        self._ask_status()
        if self.job_status in _ENDS and finished:
            self.deployment_status = "Failed" if self.job_status == "FAILED" else "Complete"
            for pod in self.workers:  # deletionRules: DeleteWorkers at 0 s
                pod.delete()
        elif finished is False and self.submitters[-1].ended:
            self.deployment_status = "Failed"

    def _submit(self) -> None:
        job = self.made.submitter
        template = job["spec"]["template"]
        metadata = {"namespace": job["metadata"]["namespace"], **template.get("metadata", {})}
        document = {"metadata": metadata | {"name": job["metadata"]["name"]}, "spec": template["spec"]}
        self.submitters.append(self.site.create(document))

    def _follow_submitter(self) -> bool | None:
        """The Job controller's part. True: a pod has ended well; False: as many as may be haven't; None: not yet."""
        last = self.submitters[-1]
        if not last.ended:
            return None
        if last.exits[-1:] == [0]:
            return True
        if len(self.submitters) > self.made.submitter["spec"]["backoffLimit"]:
            return False
        now = time.monotonic()
        if not self._again_at:
            self._again_at = now + _FIRST_BACKOFF_S * 2 ** (len(self.submitters) - 1)
        elif now >= self._again_at:
            self._again_at = 0.0
            self._submit()
        return None

    def _ask_status(self) -> None:
        code, told = self.status_of(self.made.job_id)
        status = str(told.get("status")) if code == 200 else ("not found" if code == 404 else "no answer")
        if code == 200:
            self.job_status = status
        if not self.statuses or self.statuses[-1] != status:
            self.statuses.append(status)
