"""Starts attempts at a run and decides after each failure whether and how to go on.

Files in reading order:

    supervisor  The loop in the driver that keeps a run alive
    attempt     One attempt
    causes      The verdict on an attempt, from how its processes ended
    judgement   The verdict on an attempt that has ended, and the error that ends a run
    lease       RUN/driver.json
    signals     SIGINT and SIGTERM to the driver
    recovery    How long it takes from a failure to the next useful step, in parts

May import: config, data_prep.storage, errors, health, launch, launch.cluster, launch.workers, runs, training.
"""
