"""The fork server of the driver's node, begun before the cluster is reached: the preflight is made in a fork of it, so
that the driver imports no torch, and agents on this node find it there.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.launch.cluster.worker_environment import shared_env_vars
from convmlp_platform.launch.workers.agent import Agent
from convmlp_platform.launch.workers.fork_server_link import modules_for
from convmlp_platform.launch.workers.worker_report import relay
from convmlp_platform.training.preflight.preparation_preflight import PreflightReport

_LOOK_S = 0.5


class EarlyStart:
    """Until `close`, which leaves the server to the agents that have come meanwhile."""

    def __init__(self, job: TrainJob) -> None:
        self.job, self.key = job, secrets.token_hex(8)
        # Threads and paths as in agents, for some of it is settled as modules are imported.
        environment = dict(os.environ) | shared_env_vars(
            job.launch.cpus_per_worker, own_modules=bool(job.callbacks)
        )
        self._agent = Agent(modules_for(job), self.key, environment)

    def preflight(self) -> PreflightReport:
        """See `training.preflight.preflight`."""
        import ray  # noqa: F401  # the driver's own seconds of import, while the server imports

        settings = {"job": self.job.given_values(), "environment": {}, "start": 1}
        if self._agent.warm() is None and self._agent.start(settings):
            outcome = self._outcome()
            if outcome is not None and outcome["kind"] == "finished":
                return PreflightReport(**outcome["summary"])
        # There it has failed, or can't be made: here it meets the same error, and raises it.
        from convmlp_platform.training.preflight.preflight import preflight

        return preflight(self.job)

    def share(self, node: str) -> None:
        """Let the agents on this node of the cluster, where the driver is, find the server."""
        self._agent.share(f"{self.key}-{node}")

    def close(self) -> None:
        """Let go of the server."""
        self._agent.close()

    def _outcome(self) -> dict[str, Any] | None:
        while True:
            report = self._agent.watch(_LOOK_S)
            relay(report)
            if report.exit is not None:
                return report.exit.outcome
            if report.broken:
                return None
