"""Whether a computation done again on another machine gives the same bits, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.ledger.proof_report import Span
from convmlp_platform.tracking.environment_tags import environment_tags

_SAME = ("torch.version", "timm.version", "cpu.capability", "torch.threads")


def computing_tags() -> dict[str, str]:
    """Returns the facts that, besides the versions of libraries, decide the last bits of results on a CPU.

    A run's tags contain them.
    """
    return {
        "torch.threads": str(torch.get_num_threads()),
        "cpu.capability": torch.backends.cpu.get_cpu_capability(),
    }


def threads_of(tags: Mapping[str, set[str]]) -> int | None:
    """With how many threads a process of the run computed; None where it is unknown or not always the same."""
    known = tags.get("torch.threads", set())
    return int(next(iter(known))) if len(known) == 1 else None


def inexact_weights(line: Sequence[Span], first: int, stop: int) -> list[str]:
    """Returns the reasons why a replay's weights differ from the run's in their last bits, given equal machines.

    The replay is one process that does the steps first..stop - 1 again. If the run did them on several workers, it
    took sums over ranks in another order.
    """
    sizes = {span.world_size for span in line if max(span.start, first) < min(span.stop, stop)}
    if sizes <= {1}:
        return []
    shown = " and ".join(map(str, sorted(sizes)))
    return [f"the run did the steps before on {shown} workers, which sum gradients in another order"]


def inexact_machine(job: TrainJob, device: str, tags: Mapping[str, set[str]]) -> list[str]:
    """Returns the reasons why even one forward pass from equal weights differs from the run's in its last bits."""
    reasons = []
    devices = tags.get("device", set())
    if devices != {device}:
        reasons.append(f"the run computed on {_listed(devices)}, the replay computes on {device}")
    elif device != "cpu":
        reasons.append("GPUs don't always sum in the same order")
    if job.engine.precision == "fp16" and device == "cpu":
        reasons.append("the run's precision is fp16, which CPUs don't train in: the replay's is fp32")
    if job.engine.strategy != "ddp":
        reasons.append(f"the run's strategy is {job.engine.strategy}, the replay's is ddp")
    if job.engine.compile:
        reasons.append("the run's model is compiled, the replay's is not")
    return reasons + _changed(tags)


def _changed(tags: Mapping[str, set[str]]) -> list[str]:
    now, reasons = environment_tags() | computing_tags(), []
    for name in _SAME:
        then = tags.get(name, set())
        if name in now and then != {now[name]}:
            reasons.append(f"{name} was {_listed(then)}, here it is {now[name]}")
    for name in ("git.commit", "code.version"):
        then = tags.get(name, set())
        if then and then != {now.get(name)}:
            reasons.append(f"the run's code was {_listed(then)}, this is {now.get(name, 'unknown')}")
    return reasons


def _listed(values: set[str]) -> str:
    return " and ".join(sorted(values)) or "not recorded"
