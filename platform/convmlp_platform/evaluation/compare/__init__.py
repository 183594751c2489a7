"""Puts models side by side: accuracy, parameters, cost.

Files in reading order:

    find_compared  Finding what `convmlp compare` is given, and putting it side by side
    compared       One line of a comparison
    compare_runs   Training runs as lines of a comparison
    compare_table  A comparison as text
    network_cost   The cost of a network, computed from a record's description of it, for records that

May import: config, convmlp, data, data_prep.storage, errors, evaluation, evaluation.report, goodput, models,
pictures, runs, tracking, training.
"""
