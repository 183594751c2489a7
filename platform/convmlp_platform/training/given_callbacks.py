"""Callbacks that may fail: those that a job names in `callbacks`, and whatever else mustn't hurt training."""

from __future__ import annotations

import copy
import importlib
import logging
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from convmlp_platform.checkpoints.async_checkpointer import SaveEvent
from convmlp_platform.config.explain.suggest import nearest
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import ConfigError
from convmlp_platform.runs.run_folder import RunFolder
from convmlp_platform.tracking.tracker import Tracker
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.guard.bad_steps import BadStep
from convmlp_platform.training.guard.incidents import open_incident
from convmlp_platform.training.step_plan import TrainState
from data_prep.storage.urls import scrubbed

logger = logging.getLogger(__name__)

_PLACE = "install it, or put its folder on PYTHONPATH, here and on every node"


def load_class(name: str) -> type[Callback]:
    """Import the class that `package.module:Class` names. That runs the module's code.

    Raises:
        ConfigError: there is no such class, or it is no Callback.
    """
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"there is no module {error.name!r}: {_PLACE}") from None
        raise ConfigError(f"importing {module_name} fails: {_told(error)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        near = nearest(class_name, [key for key, value in vars(module).items() if isinstance(value, type)])
        raise ConfigError(
            f"module {module_name} has no {class_name!r}" + (f"; did you mean {near}?" if near else "")
        )
    if not isinstance(found, type):
        raise ConfigError(f"{class_name} of {module_name} is no class but a value of {type(found).__name__}")
    if not issubclass(found, Callback):
        raise ConfigError(
            f"class {class_name} is no {Callback.__module__}.{Callback.__name__}: derive it from that"
        )
    return found


def callback_problems(job: TrainJob) -> Iterator[str]:
    """A line for each of the job's callbacks that can't be used here. Their modules are imported."""
    for number, name in enumerate(job.callbacks):
        try:
            load_class(name)
        except ConfigError as error:
            yield f"{_field(number, name)}: {error}"


def given_callbacks(job: TrainJob, folder: RunFolder) -> list[Callback]:
    """The job's callbacks, imported and made, each guarded; for rank 0."""
    return [
        GuardedCallback(_field(number, name), folder, lambda name=name: load_class(name)())  # type: ignore[misc]
        for number, name in enumerate(job.callbacks)
    ]


def _field(number: int, name: str) -> str:
    return f"callbacks.{number} (={name})"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {scrubbed(str(error))}".rstrip(": ")


class GuardedCallback(Callback):
    """Passes what it hears on to another callback, as copies. If that raises, it is said and recorded as an incident
    once, and the other hears nothing more until the run's next start. Nothing raises here.

    Args:
        name: for messages.
        make: makes the other one.
    """

    def __init__(self, name: str, folder: RunFolder, make: Callable[[], Callback]) -> None:
        self._name, self._incidents = name, folder.incidents
        self._step = 0
        self._watcher: Callback | None = None
        self._tried("making it", lambda: setattr(self, "_watcher", make()))

    def on_run(self, job: TrainJob, folder: RunFolder) -> None:
        self._pass_on("on_run", job, folder)

    def on_start(self, state: TrainState, stop_step: int) -> None:
        self._step = state.step
        self._pass_on("on_start", copy.deepcopy(state), stop_step)

    def on_log(self, metrics: dict[str, float], state: TrainState) -> None:
        self._step = state.step
        self._pass_on("on_log", dict(metrics), copy.deepcopy(state))

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        self._step = state.step
        self._pass_on("on_evaluation", dict(metrics), copy.deepcopy(state))

    def on_save(self, event: SaveEvent) -> None:
        self._pass_on("on_save", copy.copy(event))

    def on_bad_step(self, bad: BadStep, state: TrainState) -> None:
        self._pass_on("on_bad_step", copy.copy(bad), copy.deepcopy(state))

    def on_stop(self, reason: str, state: TrainState) -> None:
        self._pass_on("on_stop", reason, copy.deepcopy(state))

    def on_end(self, state: TrainState) -> None:
        self._pass_on("on_end", copy.deepcopy(state))

    def on_closed(self, state: TrainState, tracker: Tracker | None) -> None:
        self._pass_on("on_closed", copy.deepcopy(state), tracker)

    def _pass_on(self, hook: str, *values: Any) -> None:
        if self._watcher is not None:
            self._tried(hook, lambda: getattr(self._watcher, hook)(*values))

    def _tried(self, what: str, work: Callable[[], object]) -> None:
        try:
            work()
        except (Exception, SystemExit) as error:
            self._watcher = None
            self._record(what, error)

    def _record(self, what: str, error: BaseException) -> None:
        message = f"{self._name}: {what}: {_told(error)}"
        facts = {"rank": 0, "host": socket.gethostname(), "message": message}
        text = scrubbed("".join(traceback.format_exception(*sys.exc_info())))
        try:
            place = str(
                open_incident(
                    self._incidents, "callback", self._step, facts, {"traceback.txt": text.encode()}
                )
            )
        except OSError as refused:
            place = f"which can't be recorded: {refused}"
        logger.warning("%s; training goes on without it until its next start (%s)", message, place)
