"""Trains a registered version again from what the registry knows of it, and compares the weights.

Files in reading order:

    rebuild          The job and the description of its surroundings, rebuilt from the registry alone
    at_hand          What is at hand here and the same: data, code, environment; and what can't be equal
    equal_weights    Whether two files of weights are the same
    reproduce        The whole of it: rebuild, say what is at hand, train, compare

May import: config, data, data_prep.console, data_prep.storage, errors, jobs, models, registry, runs, tracking.
"""
