"""The driver's messages on its terminal about starts and ends, one line each."""

from __future__ import annotations

from convmlp_platform.config.sections.execution import LaunchSection
from data_prep.console import counted


def waiting(launch: LaunchSection, fits: int) -> str:
    """There is not enough room now."""
    return (
        f"waiting up to {launch.wait_for_workers_s:g} s for room for {counted(launch.least_workers, 'worker')}: "
        f"the cluster has room for {fits} now"
    )


def no_room(launch: LaunchSection, fits: int) -> str:
    """There was not enough room for too long."""
    name = "num_workers" if launch.min_workers is None else "min_workers"
    lower = f", or lower it: --set launch.min_workers={fits}" if fits else ""
    return (
        f"launch.{name} (={launch.least_workers}): the cluster has had room for {fits} only for "
        f"launch.wait_for_workers_s (={launch.wait_for_workers_s:g}): start more nodes{lower}"
    )


def own_ray_died(name: str) -> str:
    """The Ray that was started for the job has lost its only node: no room can come back."""
    return (
        f"{name}: the Ray that was started for this job has died (its raylet is gone; `dmesg` says whether for want of "
        "memory); the same command goes on from the newest checkpoint"
    )


def restarting(what: str, note: str) -> str:
    """An attempt has ended, and the next one follows."""
    return f"{what}; restarting from the newest checkpoint ({note})"


def going_on(step: int, workers: int, seconds: float) -> str:
    """The next attempt has finished its first step."""
    where = f"goes on after step {step}" if step else "starts anew"
    return f"training {where} with {counted(workers, 'worker')}, {seconds:.1f} s after the failure"


def resized(step: int, workers: int, seconds: float) -> str:
    """As `going_on`, where nothing had failed."""
    return f"training goes on after step {step} with {counted(workers, 'worker')}, after a pause of {seconds:.1f} s"


def stopping(name: str, grace: float) -> str:
    """The driver has been told to stop."""
    return f"{name}: the workers save and stop, in {grace:g} s at most; once more stops them at once"


def stopped(name: str, saved: int | None) -> str:
    """The driver ends because of a signal."""
    if saved is None:
        return f"stopped by {name}; the same command goes on from the newest checkpoint"
    return f"stopped by {name} after step {saved}, which is saved; the same command goes on from there"
