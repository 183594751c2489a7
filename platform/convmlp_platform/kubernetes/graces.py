"""Seconds that pods get to save and end, and until a job that can't start is given up.

From SIGTERM to a worker's pod (`kubectl drain`, preemption, suspension) to its end:

    measured save  <  save  <  drain  <  grace                           of a worker's pod
    replace + save <= drain                                              of a pod that isn't short-lived
    a worker's drain <= the head's drain < the head's grace              all pods may be told at the same moment

- A save took 26 s from SIGTERM to the next attempt's first step (ConvMLP-tiny, docs/benchmarks.md has larger ones);
  `save` is the time that `launch.supervisor.supervisor` keeps for it (`_HURRY_S`).
- `drain` is Ray's: how long a node that was told to end stays up (RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, 30 by
  default). The supervisor sees a node drain with that deadline. It waits `replace` seconds (`_REPLACE_S`) for other
  nodes first where there are some on their way, then has all ranks save.
- `grace` is Kubernetes': after it the kubelet kills. What is left after the drain is Ray's, to end its processes.
- Where the platform takes a spot node away in 30 s, a longer drain would be a promise that it breaks: the supervisor
  would wait for replacements until the node is gone.

A node that is lost without a word: its pods are marked 50 s after its last sign of life (40 s before Kubernetes 1.32)
and evicted after the toleration. A head is then made anew, and the submitter submits the job to it again. KubeRay 1.7
gives a job up whose status it couldn't read for 300 s: with Kubernetes' own toleration of 300 s always. That time ends
when the new head knows the job. So a submitter that follows the lost head is ended before the new head is there, and
the one after it lives long enough to submit the job to that:

    period x failures  <  node monitor + evict + head start  <  status check
                          node monitor + evict + head start  <  submit + 2 x period x failures
"""

from __future__ import annotations

from dataclasses import dataclass

SAVE_S = 45
REPLACE_S = 30
EVICT_S = 30
"""A pod's toleration of a node that is gone or unreachable."""
NODE_MONITOR_S = 50
STOP_S = 90
"""A driver's time to have its workers save when its job is stopped (`kubectl delete rayjob`, `ray job stop`): Ray's
RAY_JOB_STOP_WAIT_TIME_S, 3 by default. The pods are told at the same moment: no longer than their drain."""
STATUS_CHECK_S = 300
"""KubeRay 1.7: RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS of its operator."""
HEAD_START_S = 120
"""Scheduling, starting and probing a new head where the image is at hand."""
SUBMIT_S = 120
"""From a submitter's start on, in which its head needn't have the job."""
SUBMITTER_PERIOD_S, SUBMITTER_FAILURES = 15, 6
"""How often a submitter is asked whether its head has the job, and after how many failures in a row it is ended."""


@dataclass(frozen=True)
class Grace:
    """Seconds of a pod: until Ray ends its processes, and until Kubernetes kills what is left."""

    drain: int
    pod: int


WORKER = Grace(drain=90, pod=120)
HEAD = Grace(drain=90, pod=120)
SPOT_WORKER = Grace(drain=25, pod=30)
