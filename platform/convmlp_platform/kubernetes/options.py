"""The options of `convmlp k8s render | check`, each checked by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convmlp_platform.config.explain.suggest import nearest
from convmlp_platform.errors import ConfigError

OVERLAYS = {
    "autoscale": "the head comes first and asks for worker pods once the job is found right; implied by --min-workers",
    "spot": "worker pods on preemptible nodes, the head on others",
    "external-services": "MLflow and S3 outside the cluster, with addresses and keys from Secrets",
}
DEFAULT_PATIENCE_S = 1800
LONGEST_NAME = 47
"""KubeRay derives names of pods and services from a RayJob's and refuses longer ones."""
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_IMAGE = re.compile(
    r"([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._/-]+(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
# What passes unchanged through the two shells between a RayJob's entrypoint and the job.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/@%+-]+")


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """What a user says beside the job file.

    Args:
        workers: training processes in all (launch.num_workers), or pods of a preparation; None: as the job says.
        min_workers: go on with as few; None: as the job says.
        gpus_per_pod: 0: train on CPUs, one worker a pod.
        patience_s: until a job whose pods don't come is given up.
        deadline_hours: until a job is ended whatever it does; None: never.
    """

    workers: int | None = None
    min_workers: int | None = None
    gpus_per_pod: int = 0
    cpus_per_pod: int | None = None
    memory_gib: int | None = None
    queue: str | None = None
    priority: str | None = None
    overlays: tuple[str, ...] = ()
    image: str = ""
    name: str | None = None
    namespace: str = "convmlp"
    patience_s: int = DEFAULT_PATIENCE_S
    deadline_hours: float | None = None
    sets: tuple[str, ...] = ()
    in_image: bool = False

    @property
    def autoscaled(self) -> bool:
        """Whether worker pods are asked for by the job, after it was found right."""
        return "autoscale" in self.overlays or (self.min_workers is not None and self.queue is None)

    @property
    def spot(self) -> bool:
        """Whether worker pods may be taken away at short notice."""
        return "spot" in self.overlays

    @property
    def external(self) -> bool:
        """Whether MLflow and object storage lie outside the cluster."""
        return "external-services" in self.overlays


def option_problems(options: RenderOptions) -> list[str]:
    """Each thing that is wrong with the options whatever the job, as a sentence."""
    problems = []
    for overlay in options.overlays:
        if overlay not in OVERLAYS:
            near = nearest(overlay, OVERLAYS)
            hint = f"; did you mean {near}?" if near else ""
            problems.append(f"--overlay {overlay}: there is none of this name: {', '.join(OVERLAYS)}{hint}")
    for option, value in (
        ("--queue", options.queue),
        ("--priority", options.priority),
        ("--namespace", options.namespace),
    ):
        if value is not None and not _LABEL.fullmatch(value):
            problems.append(
                f"{option} {value}: a name in Kubernetes is lower-case letters, digits and dashes, from a letter on"
            )
    if not _IMAGE.fullmatch(options.image):
        problems.append(f"--image {options.image!r}: not an image, such as registry.example/convmlp:0.1.0")
    elif "@" not in options.image and ":" not in options.image.rpartition("/")[2]:
        problems.append(
            f"--image {options.image}: say its tag or digest; without, each node may run another version"
        )
    if options.queue is not None and options.autoscaled:
        problems.append(
            "--queue: Kueue admits a job as a whole, so it can't be autoscaled: leave out --overlay autoscale"
        )
    if options.queue is not None and options.min_workers is not None:
        problems.append(
            f"--min-workers {options.min_workers}: Kueue admits a job as a whole: leave it out, or --queue"
        )
    if options.deadline_hours is not None and options.deadline_hours * 3600 <= options.patience_s:
        problems.append(
            f"--deadline-hours {options.deadline_hours:g} is over before --patience {options.patience_s} s is: "
            "the job would be ended while it waits for its pods"
        )
    for one in options.sets:
        if not _PLAIN.fullmatch(one):
            problems.append(
                f"--set {one}: on its way to the job it would pass two shells, which read spaces, quotes, brackets "
                "and the like: write this value into the job file"
            )
    return problems


def kubernetes_name(name: str | None, job_name: str) -> str:
    """The RayJob's name: --name, or the job's own in lower case with dashes.

    Raises:
        ConfigError: Kubernetes or KubeRay would refuse it.
    """
    found = name or re.sub(r"[._]", "-", job_name.lower())
    said = f"--name {name}" if name else f"name: {job_name}"
    if not _LABEL.fullmatch(found):
        raise ConfigError(
            f"{said}: can't name a RayJob, whose name is lower-case letters, digits and dashes, from a letter on: "
            "choose another by --name"
        )
    if len(found) > LONGEST_NAME:
        raise ConfigError(
            f"{said}: has {len(found)} characters, but KubeRay takes {LONGEST_NAME} at most: choose another by --name"
        )
    return found


def default_image() -> str:
    """The image of this program's version, as k8s/Dockerfile's first lines build it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"convmlp:{version('convmlp-platform')}"
    except PackageNotFoundError:
        return "convmlp"  # refused, as it has no tag
