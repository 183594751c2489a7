"""Delivers journals to MLflow; only this package and the registry import it.

Files in reading order:

    feeder        The training process's hold on its replayer process
    replayer      Feeds MLflow from a run's journal, in its own process (`python -m` this module, with
    delivery      Handing journal records to one MLflow run
    checkpoint_models  Checkpoints in MLflow
    limits        The names and lengths that MLflow's columns hold
    client        Opening MLflow, and the record of one run in it
    server        MLflow's server as MLflow's own client reaches it
    mlflow_internals  MLflow's names that its documentation doesn't promise
    tracking_uri  The MLflow server or store that a run uses, and the check that it is there

May import: config, data_prep.storage, errors, tracking.
"""
