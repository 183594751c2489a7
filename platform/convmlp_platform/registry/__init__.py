"""Registers models with MLflow and finds them again.

Files in reading order:

    registry          Registered models
    promotions        A registered model as promotions see it: versions, training samples, champion, log
    decision_log      The log of promotions: it decides, the alias follows
    training_samples  The samples that a model was trained on, by checksum
    log_model         A bundle as an MLflow model
    pyfunc_model      The registered model as MLflow sees it
    prediction_table  Predictions as the columns of a table, as MLflow's models return them

May import: config, data, data_prep.dataset, data_prep.storage, errors, models, tracking.
"""
