"""Promotes a registered model: measures candidate and champion afresh, compares them, and has the decision on record.

Files in reading order:

    promote              From a checked job to a decision in the registry's log
    promotion_preflight  All that can be known to be wrong with a promotion before a model is measured
    rules                The verdict on a candidate, from what was measured of it and of the champion
    paired               Whether a difference between two models on the same images is more than chance
    outcomes             What a model said of each image of a split, by task
    measure              One model on one split, in a process of its own

May import: config, convmlp, data, data_prep.console, data_prep.dataset, data_prep.storage, distributed, errors,
evaluation, registry, runs, training.
"""
