"""The command `convmlp sweep FILE`: it checks every trial's job, trains the trials that aren't done, and compares all.

A sweep keeps no state of its own besides the end of each trial. Started again, it makes the same trials from the same
file and leaves out those that have ended. The others go on from their checkpoints as any run does.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from convmlp_platform.config.sweep import SweepJob
from convmlp_platform.errors import LaunchError
from convmlp_platform.evaluation.compare import SWEEP_NAME
from convmlp_platform.launch import messages
from convmlp_platform.launch.signals import Interrupted
from convmlp_platform.launch.sweep_parent import SweepParent
from convmlp_platform.launch.sweep_plan import SweepPlan, plan_of, room_problems, trials_at_a_time
from data_prep.files import write_atomically


def launch_sweep(sweep: SweepJob) -> int:
    """Run the sweep to its end and print its table; returns the exit code: 0, 1 where a trial has failed, 128 + the
    signal that ended it.

    Raises:
        PlatformError: for all that a user can fix, before any trial starts.
    """
    from convmlp_platform.launch.lease import lease, refuse_if_held

    plan = plan_of(sweep)
    refuse_if_held(plan.folder)
    with lease(plan.folder) as lost:
        about = {"sweep": sweep.name, "metric": plan.metric, "trials": [one.name for one in plan.trials]}
        write_atomically(plan.folder / SWEEP_NAME, json.dumps(about, indent=2).encode())
        parent = SweepParent(plan)
        try:
            if plan.todo:
                _train(plan, parent, lost.is_set)
        except Interrupted as stop:
            parent.close("KILLED")
            messages.say(f"stopped by {stop}; the same command goes on with the sweep")
            return 128 + stop.signal_number
        except BaseException:
            parent.close("FAILED")
            raise
        return parent.finish()


def _train(plan: SweepPlan, parent: SweepParent, lost: Callable[[], bool]) -> None:
    from convmlp_platform.launch import capacity
    from convmlp_platform.launch.connect import connect
    from convmlp_platform.launch.environment import shared_env_vars

    jobs = [planned.trial.job for planned in plan.todo]
    threads = max(job.launch.cpus_per_worker for job in jobs)
    with connect(jobs[0].launch.address, shared_env_vars(threads=threads)) as cluster:
        if problems := room_problems(plan, cluster):
            raise LaunchError("\n".join(problems))
        nodes = capacity.cluster_nodes()
        at_once = trials_at_a_time([one.trial for one in plan.todo], nodes, plan.sweep.max_concurrent)
        before = len(plan.trials) - len(plan.todo)
        messages.say(
            f"{plan.sweep.name}: {messages.count(len(plan.trials), 'trial')}"
            f"{f', {before} of them done before' if before else ''}, {at_once} at a time on "
            + (
                "a local Ray"
                if cluster is None
                else f"the Ray cluster of {messages.count(len(nodes), 'node')}"
            )
        )
        from convmlp_platform.launch.sweep_tune import run_trials

        run_trials(plan, nodes, at_once, parent.child_tags, lost)
