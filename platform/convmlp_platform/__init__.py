"""Trains on a cluster: jobs, workers, checkpoints, records.

Files in reading order:

    cli/          The command `convmlp`
    python_api/   The same from Python: `import convmlp_platform as cp`, whose names are found when they are asked for
    jobs/         Runs and checks a job of any kind: `convmlp run`, `convmlp check`, `convmlp demo`
    sweep/        Trains one job in many settings with Ray Tune and compares them
    launch/       Runs training processes on Ray and starts them again after failures
    training/     A training run: `run.run` is its story, `trainer.Trainer` its loop
    evaluation/   Evaluates models: a folder of figures, pictures and tables for each
    replay/       Does a recorded step again, bit for bit
    report/       A run's report: one HTML page that needs no network
    show/         Draws datasets, feature maps and predictions for the command line
    runs/         Run folders: who owns one, where its parts lie, and the model that a user names
    registry/     Registers models with MLflow and finds them again
    goodput/      Accounts for every second of every worker
    ledger/       Records the samples that each step used, and proves that each was used once an epoch
    data/         Reads batches: which samples, from where, checked, decoded
    engine/       Runs a step under a strategy: device, precision, gradients, update
    checkpoints/  Saves and loads a run's state; a checkpoint is whole or doesn't exist
    tracking/     Records a run in a journal on disk, from which MLflow is told
    models/       A trained model as a folder, and its predictions
    health/       Shows whether training is alive, and why not
    config/       Job files: typed, strict, explained
    pictures/     Draws pictures; knows arrays, not runs
    distributed   The place of this process among the workers, and the few collectives the platform needs
    torch_internals  torch's private names that the platform uses
    errors        The errors a user can fix, and the cause of any error

May import: convmlp, data_prep.annotations, data_prep.config, data_prep.console, data_prep.copy_dataset,
data_prep.dataset, data_prep.errors, data_prep.images, data_prep.output_folder, data_prep.prepare, data_prep.repair,
data_prep.shards, data_prep.sources, data_prep.storage, data_prep.summary, data_prep.verify, data_prep.writers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convmlp_platform.errors import ConfigError, DataError, PlatformError
    from convmlp_platform.python_api.datasets.prepared_dataset import PreparedDataset, open_dataset
    from convmlp_platform.python_api.job_values import load_job
    from convmlp_platform.python_api.loaded_model import LoadedModel, load_model
    from convmlp_platform.python_api.run_jobs import (
        EvaluationSummary,
        TrainingSummary,
        evaluate,
        prepare,
        train,
    )

__all__ = [
    "ConfigError",
    "DataError",
    "EvaluationSummary",
    "LoadedModel",
    "PlatformError",
    "PreparedDataset",
    "TrainingSummary",
    "evaluate",
    "load_job",
    "load_model",
    "open_dataset",
    "prepare",
    "train",
]

# Most of them bring PyTorch along; importing the package costs nothing.
_PLACES = {
    "ConfigError": "convmlp_platform.errors",
    "DataError": "convmlp_platform.errors",
    "EvaluationSummary": "convmlp_platform.python_api.run_jobs",
    "LoadedModel": "convmlp_platform.python_api.loaded_model",
    "PlatformError": "convmlp_platform.errors",
    "PreparedDataset": "convmlp_platform.python_api.datasets.prepared_dataset",
    "TrainingSummary": "convmlp_platform.python_api.run_jobs",
    "evaluate": "convmlp_platform.python_api.run_jobs",
    "load_job": "convmlp_platform.python_api.job_values",
    "load_model": "convmlp_platform.python_api.loaded_model",
    "open_dataset": "convmlp_platform.python_api.datasets.prepared_dataset",
    "prepare": "convmlp_platform.python_api.run_jobs",
    "train": "convmlp_platform.python_api.run_jobs",
}


def __getattr__(name: str) -> Any:
    """The Python interface's names, imported when they are first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not by import_module: a registered model takes along whatever that may import.
    found = getattr(__import__(_PLACES[name], fromlist=[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
