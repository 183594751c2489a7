"""Decides the samples of a step and of a rank: a pure function of seed and step.

Files in reading order:

    sample_order  The order of samples
    permutation   A keyed permutation of 0..n-1 that can be evaluated at single places, without a table
    rank_share    The micro-batches of a step that a rank computes

May import: nothing of ours.
"""
