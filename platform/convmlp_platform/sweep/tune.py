"""A sweep's trials under Ray Tune: it starts them as room gets free, and decides by their evaluations which go on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from convmlp_platform.errors import LaunchError
from convmlp_platform.health.events import signal_name
from convmlp_platform.launch.cluster.capacity import Node, uses_gpu
from convmlp_platform.launch.cluster.ray_internals import quiet_deaths
from convmlp_platform.launch.cluster.worker_environment import private_variables
from convmlp_platform.launch.supervisor.signals import Interrupted, StopSignals
from convmlp_platform.runs.trial_record import Ended, write_end
from convmlp_platform.sweep.run_trial import EPOCHS, STATUS, Board, SweepTrial
from convmlp_platform.sweep.sweep_plan import PlannedTrial, SweepPlan, settings_text
from data_prep import console

HALVED = "stopped"
"""The reason given to a trial that is asked to end because the others do better."""
# Its head's node holds this; the trials' drivers take a grain of it each, so that no worker's end is theirs.
_HEAD = "node:__internal_head__"
_GRAIN = 0.0001
# A trial's driver lives on the head, so what ends it is rare; each time its run goes on from its checkpoint.
_MAX_FAILURES = 3
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints a table for each trial that fails, also at verbosity 0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the runs' own journals are the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial also tells that there is nothing new
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


def run_trials(
    plan: SweepPlan,
    nodes: Sequence[Node],
    at_once: int,
    child_tags: Mapping[str, str],
    lost: Callable[[], bool],
) -> None:
    """Train the trials that aren't done, on the connected cluster; how each ends is in its folder afterwards.

    Raises:
        Interrupted: told to stop by a signal; the running trials are saved.
        LaunchError: another driver has taken over the sweep.
    """
    os.environ.update(_SETTINGS)
    storage = plan.folder / "tune"
    shutil.rmtree(storage, ignore_errors=True)  # nothing in it is needed again
    board = ray.remote(Board).options(num_cpus=0, resources={_HEAD: _GRAIN}).remote()
    # Trials that are done tell the scheduler once more what they did, so that the others are judged as before.
    takes_part = plan.trials if plan.sweep.scheduler.name == "asha" else plan.todo
    settings = [_settings(one, plan, nodes) | {"board": board} for one in takes_part]
    ray.get(board.give.remote({one.name: _job(one, child_tags) for one in takes_part}, private_variables()))
    signals = StopSignals()
    conductor = Conductor(plan, board, signals, lost)
    tuner = tune.Tuner(
        tune.with_resources(SweepTrial, tune.PlacementGroupFactory([{"CPU": 0, _HEAD: _GRAIN}])),
        param_space={"run": tune.grid_search(settings)},
        tune_config=tune.TuneConfig(
            metric=plan.metric,
            mode=plan.sweep.mode,
            scheduler=_scheduler(plan, board),
            max_concurrent_trials=at_once,
            reuse_actors=False,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            stop=conductor,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=[conductor],
        ),
    )
    with signals.listening(), quiet_deaths():
        tuner.fit()
    if signals.number is not None:
        raise Interrupted(signals.number)


def _job(planned: PlannedTrial, child_tags: Mapping[str, str]) -> dict[str, Any]:
    """All values of the trial's job."""
    job = planned.trial.job
    tracking = job.tracking.model_copy(update={"tags": job.tracking.tags | dict(child_tags)})
    return job.model_copy(update={"tracking": tracking}).given_values()


def _settings(planned: PlannedTrial, plan: SweepPlan, nodes: Sequence[Node]) -> dict[str, Any]:
    """See SweepTrial. Tune writes it into files."""
    return {
        "trial": planned.name,
        "use_gpu": uses_gpu(planned.trial.job, nodes),
        "metric": plan.metric,
        "steps_per_epoch": planned.steps_per_epoch,
        "stop_step": planned.stop_step,
        "over": planned.done,
    }


def _folder_name(trial: Any) -> str:
    return str(trial.config["run"]["trial"])


def _scheduler(plan: SweepPlan, board: Any) -> TrialScheduler:
    section = plan.sweep.scheduler
    if section.name == "fifo":
        return FIFOScheduler()
    return Halving(
        board,
        time_attr=EPOCHS,
        max_t=max(one.epochs for one in plan.trials),
        grace_period=section.grace_epochs,
        reduction_factor=section.reduction,
    )


class Halving(ASHAScheduler):
    """ASHA, whose stopped trials are told to save and end."""

    def __init__(self, board: Any, **options: Any) -> None:
        super().__init__(**options)
        self.board, self.told = board, set[str]()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See ASHAScheduler."""
        name = _folder_name(trial)
        if name not in self.told and super().on_trial_result(tune_controller, trial, result) == self.STOP:
            self.told.add(name)
            if not trial.config["run"]["over"]:
                self.board.stop.remote(HALVED, name)
        return str(self.CONTINUE)


class Conductor(tune.Callback, tune.Stopper):
    """Notes how trials end, tells the terminal, and ends the sweep where the driver is told to.

    A trial's `trial.json` is written by nobody else.
    """

    def __init__(self, plan: SweepPlan, board: Any, signals: StopSignals, lost: Callable[[], bool]) -> None:
        self.plan, self.board, self.signals, self.lost = plan, board, signals, lost
        self.planned = {one.name: one for one in plan.trials}
        self.ended = len(plan.trials) - len(plan.todo)
        self.told, self.running = False, False

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes all it is given into a file, which we never read

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Of a Stopper, for one trial: those that are to end are told by the board."""
        return False

    def stop_all(self) -> bool:
        """Of a Stopper: no more trials are to be started, once those that ran have saved."""
        return self.told and not self.running

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Of a Callback, several times a second."""
        self.running = any(trial.status == "RUNNING" for trial in trials)
        if self.lost():
            raise LaunchError(
                f"another driver has taken over sweep {self.plan.sweep.name!r}; this one has stopped"
            )
        if self.signals.hurry and self.signals.number is not None:
            raise Interrupted(self.signals.number)
        if self.signals.number is not None and not self.told:
            self.told, name = True, signal_name(self.signals.number)
            self.board.stop.remote(name)
            console.say(f"{name}: the running trials save and stop; once more stops them at once")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Of a Callback."""
        one = self.planned[_folder_name(trial)]
        if not one.done and not self.told:
            console.say(f"trial {one.name} starts: {settings_text(one.trial.settings)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Of a Callback: the trial has said `done`."""
        result, one = trial.last_result or {}, self.planned[_folder_name(trial)]
        status, steps = result.get(STATUS), int(result.get("steps", 0))
        if one.done or status not in ("finished", "failed", HALVED):
            return
        reason = str(result.get("reason", ""))
        self._note(one, Ended(status=status, steps=steps, reason=reason, scheduler=self.plan.sweep.scheduler))
        if status == "failed":
            first = reason.partition("\n")[0]
            console.say(f"trial {one.name} has failed: {first} ({self._count()})")
            return
        what = "is finished" if status == "finished" else "is stopped, as others do better"
        score = result.get(self.plan.metric)
        shown = "" if score is None else f": {self.plan.metric} {score:.4g}"
        console.say(f"trial {one.name} {what}{shown} ({self._count()})")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Of a Callback: the trial's own process was lost too often."""
        one = self.planned[_folder_name(trial)]
        said = str(trial.get_error() or "").strip().splitlines()
        reason = f"the trial's own process was lost {_MAX_FAILURES + 1} times" + (
            f": {said[-1]}" if said else ""
        )
        self._note(one, Ended(status="failed", steps=0, reason=reason, scheduler=self.plan.sweep.scheduler))
        console.say(f"trial {one.name} has failed: {reason} ({self._count()})")

    def _note(self, one: PlannedTrial, end: Ended) -> None:
        write_end(one.run, end)
        self.ended += 1

    def _count(self) -> str:
        return f"{self.ended} of {len(self.plan.trials)}"
