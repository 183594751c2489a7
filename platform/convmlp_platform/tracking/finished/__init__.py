"""Records work that is done when it is recorded: preparations and evaluations.

Files in reading order:

    finished_work       Work that is done and has a folder, as an MLflow run
    evaluation          A finished evaluation as an MLflow run, and as tags of the registered version that it
    preparation_record  A finished data preparation as an MLflow run

May import: config, data_prep.dataset, data_prep.storage, errors, tracking, tracking.mlflow.
"""
