"""Records a run in a journal on disk, from which MLflow is told.

Files in reading order:

    journal           The record of a run
    journal_digest    A run's journal in bounded memory
    tracker           The calls by which training records a run
    finished_work     Records work that is done when it is recorded: preparations and evaluations
    environment_tags  The environment of a run
    provenance/       The facts by which a result can be accounted for and made again
    delivery_state    The state of a run's delivery to MLflow, in `RUN_DIR/tracking/`
    moved_store       A SQLite store of MLflow, its artifacts and its runs, which move together
    mlflow/           Delivers journals to MLflow; only this package and the registry import it

May import: config, data_prep.dataset, data_prep.storage, errors.
"""
