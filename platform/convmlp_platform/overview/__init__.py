"""Shows how runs are, from what lies in their folders: `convmlp runs`, `convmlp watch`. It writes nothing.

Files in reading order:

    find_runs     The run folders below a place
    run_reader    Reads what is on disk of a run, again and again, each time only what is new
    run_overview  A run in a row: state, step, time left, best metric, goodput, last sign of life
    runs_table    Rows as a table for a terminal of any width, or as JSON
    mlflow_runs   The same rows of what MLflow knows
    run_page      A run on a page: its rows of words, for people
    watch_run     The page in a terminal until the run ends; plain lines where there is none

May import: checkpoints, config, data_prep.console, data_prep.storage, errors, goodput, health, registry, runs,
tracking, training.
"""
