"""The verdict on an attempt that has ended, and the error that ends a run."""

from __future__ import annotations

from convmlp_platform import errors
from convmlp_platform.errors import LaunchError, PlatformError
from convmlp_platform.launch.attempt import Attempt
from convmlp_platform.launch.budgets import Decision
from convmlp_platform.launch.causes import Ending, Verdict, verdict


def judge(attempt: Attempt) -> Verdict:
    """Why the attempt ended: a hang, an order, or what its processes' ends say."""
    hang, order = attempt.hang, attempt.order
    if hang is not None:
        culprit = Ending(hang.rank, hang.host, "died", phase=hang.phase.name.lower(), step=hang.step)
        return Verdict("hang", hang.message(), "hang", culprit)
    if order is not None and attempt.late:
        return Verdict(order.cause, f"{order.message} at step {attempt.step}, which was not saved in time")
    found = verdict(attempt.endings)
    if order is None or found.cause == "finished":
        return found
    if order.cause == "stopped":
        return Verdict(order.cause, f"{order.message} at step {attempt.step}")
    if found.cause in ("job", "numbers") or found.culprit is None or found.culprit.is_failure:
        return found
    return Verdict(order.cause, f"{order.message}: all workers have saved step {found.culprit.step}")


def final_error(found: Verdict, decision: Decision) -> PlatformError:
    """What the driver raises where nothing is started again: the error of a worker as it was, or what was last."""
    culprit = found.culprit
    if found.cause in ("job", "numbers") and culprit is not None:
        kind = getattr(errors, culprit.platform or "", LaunchError)
        is_ours = isinstance(kind, type) and issubclass(kind, PlatformError)
        return (kind if is_ours else LaunchError)(culprit.message)
    trace = f"\n{culprit.traceback.rstrip()}" if culprit and culprit.traceback else ""
    return LaunchError(f"{found.message}; {decision.note}{trace}")
