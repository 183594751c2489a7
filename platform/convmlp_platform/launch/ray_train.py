"""A training job as a Ray Train run: N workers over the nodes of the connected cluster."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import LaunchError, PlatformError
from convmlp_platform.launch.gloo import NodeAwareTorchConfig
from convmlp_platform.launch.worker import train_worker
from convmlp_platform.training.run_folder import run_path


class Interrupted(Exception):
    """The driver was told to stop by `signal_number`; the workers are gone."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class FailureMessages(UserCallback):
    """Runs in Ray Train's controller: says in one line what failed, and ends the run where retrying can't
    help.
    """

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.failures = 0
        self._last = ""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises, and Ray Train then doesn't retry: the PlatformError of a worker, and LaunchError where the
        code of a worker fails in the same way twice in a row, since it would a third time. Lost workers are
        retried.
        """
        for error in worker_exceptions.values():
            if isinstance(error, PlatformError):
                raise error
        self.failures += 1
        rank, error = _culprit(worker_exceptions)
        in_code = bool(getattr(error, "__notes__", None)) and not _is_consequence(error)
        if in_code and self._last == _headline(error) and self.max_failures:
            raise _worker_failed(rank, error, " twice in a row")
        self._last = _headline(error)
        limit = "" if self.max_failures < 0 else f" of {self.max_failures}"
        again = self.max_failures < 0 or self.failures <= self.max_failures
        then = f"restarting all workers ({self.failures}{limit})" if again else "no restarts left"
        print(f"worker {rank} failed: {_headline(error)}; {then}", flush=True)


def train(job: TrainJob, *, use_gpu: bool) -> dict[str, Any]:
    """Run `job` on the connected cluster; returns the summary of `launch.summary.summary_of`.

    Raises the PlatformError that a worker raised, LaunchError where the workers failed otherwise, and
    Interrupted after SIGINT or SIGTERM.
    """
    launch = job.launch
    resources = {"CPU": float(launch.cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    settled = job.model_copy(update={"launch": launch.model_copy(update={"use_gpu": use_gpu})})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": settled.model_dump(mode="json", exclude_unset=True) | {"kind": "train"}},
        torch_config=NodeAwareTorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=launch.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            placement_strategy=launch.placement,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run_path(job)),
            failure_config=FailureConfig(max_failures=launch.max_failures),
            callbacks=[FailureMessages(launch.max_failures)],
            # Ray Train's own log goes to its files; a failure is told by FailureMessages, once and in one
            # line.
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )
    with _stopping_cleanly() as stop:
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _as_platform_error(error) from error
        except (SystemExit, KeyboardInterrupt) as error:
            raise Interrupted(stop.signal_number or signal.SIGINT) from error
    summary: dict[str, Any] = result.return_value
    return summary


class _Stop:
    signal_number: int | None = None


@contextmanager
def _stopping_cleanly() -> Iterator[_Stop]:
    """SIGTERM does what Ray Train does at SIGINT, which is to stop the workers and the controller.

    By calling SIGINT's handler rather than sending it: Ray blocks that signal in the drivers of submitted
    jobs.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, frame)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_platform_error(error: TrainingFailedError) -> PlatformError:
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        while isinstance(cause, ControllerError):
            cause = cause.controller_failure
        if isinstance(cause, PlatformError):
            return cause
        return LaunchError(f"Ray Train failed: {_headline(cause)}")
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return _worker_failed(*_culprit(error.worker_failures))
    return LaunchError(f"Ray Train failed: {_headline(error)}")


def _worker_failed(rank: int, error: Exception, how: str = "") -> LaunchError:
    notes = "\n".join(["", *getattr(error, "__notes__", [])]).rstrip()
    return LaunchError(f"worker {rank} failed{how}: {_headline(error)}{notes}")


def _culprit(failures: dict[int, Exception]) -> tuple[int, Exception]:
    """The failure that explains the others: one in our code rather than a connection that another's death
    closed.
    """
    return min(failures.items(), key=lambda item: (_is_consequence(item[1]), item[0]))


def _is_consequence(error: Exception) -> bool:
    text = str(error).lower()
    return "connection" in text or "gloo" in text or "nccl" in text


def _headline(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
