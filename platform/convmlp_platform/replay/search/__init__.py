"""Finds the samples and the layer that make a step's numbers go wrong.

Files in reading order:

    sample_search    By which samples a step's numbers go wrong
    partial_step     One micro-batch of a step, of which parts can be computed by themselves
    first_bad_layer  The search for the place in a model where numbers stop being finite

May import: convmlp, data, engine.
"""
