"""Rendered jobs on the stand-in for Kubernetes, as their user sees them: applied, followed, proved by their ledger."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from k8s_manifests import K8S, ROOT
from kuberay import Document
from prepared import digits
from standin_cluster import Operator, StandIn
from standin_pod import wait_for

from convmlp import create_model
from convmlp_platform.kubernetes.options import RenderOptions
from convmlp_platform.kubernetes.render import render_job
from convmlp_platform.ledger.proof import check_ledger

START_S = 900.0
"""Until pods are ready and a run trains, on a machine that others use, too."""


class Life:
    """The site, its storage, and the RayJobs that were applied."""

    def __init__(self, site: StandIn, storage: Path) -> None:
        self.site, self.storage = site, storage
        self.operators: dict[str, Operator] = {}
        self.seconds: dict[str, float] = {}
        self.stuck = ""
        """For what a scenario waited in vain: those after it would wait, too."""

    def rendered(self, name: str, *sets: str) -> Document:
        """The RayJob of `convmlp k8s render`; its ConfigMap is applied."""
        options = RenderOptions(
            workers=2, cpus_per_pod=1, memory_gib=3, image="convmlp:0.1.0", sets=(f"name={name}", *sets)
        )
        text = render_job(ROOT / "jobs" / "pretrain_digits.yaml", options)
        config, rayjob = yaml.safe_load_all(text)
        self.site.objects["ConfigMap", config["metadata"]["name"]] = config["data"]
        return rayjob  # type: ignore[no-any-return]

    def apply(self, name: str, version: str, *sets: str) -> Operator:
        self.operators[name] = Operator(self.site, self.rendered(name, *sets), version)
        return self.operators[name]

    def events(self, run: str, kind: str = "") -> list[dict[str, Any]]:
        file = self.storage / "runs" / run / "events.jsonl"
        events = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [event for event in events if not kind or event["kind"] == kind]

    def step(self, run: str) -> int:
        """Of the newest checkpoint."""
        saved = sorted((self.storage / "runs" / run / "checkpoints").glob("step-*[0-9]"))
        return int(saved[-1].name.removeprefix("step-")) if saved else 0

    def resumed_at(self, run: str) -> int:
        """The step from which the newest attempt runs."""
        return int(self.events(run, "attempt_running")[-1]["step"])

    def prove(self, run: str) -> None:
        """`convmlp data ledger`: each sample exactly once an epoch, whatever happened."""
        report = check_ledger(self.storage / "runs" / run, dataset=self.storage / "data" / "digits")
        assert report.ok and report.checked_payloads, report.lines()
        print(*report.lines(), sep="\n")

    def until(self, happened: Callable[[], Any], what: str, timeout: float = START_S) -> float:
        """As `wait_for`; gives up early where the job has ended, and says how things stand."""
        try:
            seconds = wait_for(lambda: happened() or self._ended(), what, timeout)
            assert happened(), f"{what}: {self._ended()}"
            return seconds
        except AssertionError as error:
            self.stuck = what
            raise AssertionError(f"{error}\n{self.standing()}") from None

    def _ended(self) -> str:
        newest = [*self.operators.values()][-1]
        return f"the job is {newest.deployment_status}" if newest.done else ""

    def standing(self) -> str:
        lines = []
        for name, operator in self.operators.items():
            lines.append(f"{name}: {operator.deployment_status} {operator.statuses} {operator.log()[-3000:]}")
        for pod in self.site.living():
            lines.append(
                f"{pod.name} on {pod.node}: ready {pod.ready}, exits {pod.exits}, {pod.text()[-800:]}"
            )
        return "\n".join(lines)


@contextmanager
def standin_life(folder: Path) -> Iterator[Life]:
    """A site with a dataset on its storage and our network policies; prints at the end how long everything took."""
    storage = folder / "storage"
    shutil.copytree(digits("webdataset"), storage / "data" / "digits")
    for place in (storage, *storage.rglob("*")):
        os.chown(place, 1000, 1000)
    with StandIn(folder / "pods", storage) as site:
        site.apply(policies())
        life = Life(site, storage)
        try:
            yield life
        finally:
            for operator in life.operators.values():
                operator.stop()
            print("\nseconds:", *(f"{value:7.1f} {name}" for name, value in life.seconds.items()), sep="\n")


def epochs_of(seconds: float) -> int:
    """About as many epochs of the digits as two workers on one core each train in `seconds` on this machine."""
    torch.manual_seed(0)
    model, images = create_model("convmlp_tiny", num_classes=10), torch.rand(32, 3, 32, 32)
    times = []
    for _ in range(12):
        begun = time.process_time()
        model(images).square().mean().backward()
        times.append(time.process_time() - begun)
    # A micro-batch each; what a job does beside takes about as long again. An epoch is 1,438 digits in batches of 64.
    return math.ceil(seconds / (2 * min(times)) / (1438 // 64))


def policies() -> list[Document]:
    """Our NetworkPolicies."""
    return list(yaml.safe_load_all((K8S / "base" / "networkpolicy.yaml").read_text()))


@contextmanager
def goes_on(life: Life, what: str) -> Iterator[None]:
    """Waits until another attempt runs after what is done inside, and has saved."""
    life.until(lambda: life.step("long") >= life.resumed_at("long") + 10, "some steps before", 900)
    running, begun = len(life.events("long", "attempt_running")), time.monotonic()
    yield
    life.until(
        lambda: len(life.events("long", "attempt_running")) > running, f"training to go on: {what}", 1500
    )
    life.seconds[f"{what}: the next step"] = time.monotonic() - begun
