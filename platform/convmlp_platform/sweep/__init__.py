"""Trains one job in many settings with Ray Tune and compares them.

Files in reading order:

    launch_sweep  The command `convmlp sweep FILE`, and the table of its trials side by side
    sweep_plan    A sweep before it starts
    tune          A sweep's trials under Ray Tune
    run_trial     A trial of a sweep as Ray Tune sees it

May import: config, data, data_prep.console, data_prep.storage, errors, evaluation, health, launch, runs, tracking,
training.
"""
