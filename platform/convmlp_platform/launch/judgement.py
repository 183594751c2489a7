"""The verdict on an attempt that has ended, and the error that ends a run."""

from __future__ import annotations

from convmlp_platform.errors import ErrorRecord, LaunchError, PlatformError
from convmlp_platform.launch.attempt import Attempt
from convmlp_platform.launch.budgets import Decision
from convmlp_platform.launch.causes import FINAL, Ending, Verdict, cause_of_ending, verdict


def judge(attempt: Attempt) -> Verdict:
    """Returns the reason why the attempt ended: a hang, an order, or the reason in its processes' ends."""
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
    if found.cause in FINAL or found.culprit is None or found.culprit.is_failure:
        return found
    return Verdict(order.cause, f"{order.message}: all workers have saved step {found.culprit.step}")


def final_error(found: Verdict, decision: Decision) -> PlatformError:
    """Returns the error that the driver raises if nothing is started again.

    It is the error of a worker as it was, or a `LaunchError` with the last verdict.
    """
    culprit, cause = found.culprit, found.cause
    if cause in FINAL and culprit is not None:
        record = ErrorRecord("", culprit.cause, culprit.message, culprit.details, culprit.platform)
        error = record.error()
        return (
            error if isinstance(error, PlatformError) else LaunchError(culprit.message, cause=culprit.cause)
        )
    said = f"{found.message}; {decision.note}"
    if culprit is None:
        return LaunchError(said)
    if culprit.platform is None and culprit.traceback:  # the platform's own errors explain themselves
        said += f"\n{culprit.traceback.rstrip()}"
    return LaunchError(said, cause=cause_of_ending(culprit))
