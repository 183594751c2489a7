"""Registers models with MLflow and finds them again.

Files in reading order:

    registry          Registered models
    promotions        A registered model as promotions see it: versions, training samples, champion, log
    decision_log      The log of promotions: it decides, the alias follows
    training_samples  The samples that a model was trained on, by checksum
    log_model         A bundle as an MLflow model
    inference_code    The code that a registered model takes along
    model_script      The script of a registered model, which MLflow copies and runs
    pyfunc_model      The registered model as MLflow sees it
    lineage/          The chain behind a registered version
    prediction_table  Predictions as columns, for versions that were registered before

May import: config, data, data_prep.console, data_prep.dataset, data_prep.storage, errors, models, tracking.
"""
