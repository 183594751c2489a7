"""Registers models with MLflow and finds them again.

Files in reading order:

    registry          Registered models
    log_model         A bundle as an MLflow model
    pyfunc_model      The registered model as MLflow sees it
    prediction_table  Predictions as the columns of a table, as MLflow's models return them

May import: config, data_prep.storage, errors, models, tracking.
"""
