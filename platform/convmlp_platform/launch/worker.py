"""What runs inside each Ray Train worker."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

import ray.train

from convmlp_platform.config.schema import TrainJob
from convmlp_platform.errors import PlatformError
from convmlp_platform.launch.summary import summary_of
from convmlp_platform.training.callbacks import Callback
from convmlp_platform.training.run import run
from convmlp_platform.training.state import TrainState


class RayReport(Callback):
    """Hand each evaluation's metrics to Ray Train; its `report` is a barrier, which all ranks call alike."""

    def on_evaluation(self, metrics: dict[str, float], state: TrainState) -> None:
        ray.train.report(dict(metrics))


def train_worker(config: Mapping[str, Any]) -> dict[str, Any]:
    """Train this rank's part of the job `config["job"]` describes; returns the run's summary in plain values.

    The job is validated again: it came over the network, perhaps from another version of the code. An error
    that isn't the user's carries its traceback as a note, which is all that reaches the driver of where it
    happened.
    """
    # Ray Train logs each report of each rank at INFO, under the name of the file that does.
    for name in list(logging.root.manager.loggerDict):
        if name.endswith("ray/train/v2/_internal/execution/context.py"):
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        job = TrainJob.model_validate(config["job"])
        return summary_of(run(job, callbacks=[RayReport()]))
    except PlatformError:
        raise
    except Exception as error:
        error.add_note(traceback.format_exc())
        raise
