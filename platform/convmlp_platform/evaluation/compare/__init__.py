"""Puts models side by side: accuracy, parameters, cost.

Files in reading order:

    find_compared  Finding what `convmlp compare` is given, and putting it side by side
    compared       One line of a comparison, and what a model costs where no record says it
    compare_runs   Training runs as lines of a comparison
    compare_table  A comparison as text

May import: config, convmlp, data, data_prep.console, data_prep.storage, errors, evaluation, evaluation.report,
goodput, models, pictures, runs, tracking, training.
"""
