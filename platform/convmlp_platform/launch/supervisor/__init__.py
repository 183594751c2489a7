"""Starts attempts at a run and decides after each failure whether and how to go on.

Files in reading order:

    supervisor  The loop in the driver that keeps a run alive
    attempt     One attempt: its workers, from the first to the last word of each
    verdict     The verdict on an attempt that has ended; the error that ends a run
    restarts    Restarts of a run
    run_metrics Numbers of a run for Prometheus, through Ray
    signals     SIGINT and SIGTERM to the driver

May import: config, data_prep.console, data_prep.storage, errors, health, launch, launch.cluster, launch.workers,
runs, tracking, training.
"""
