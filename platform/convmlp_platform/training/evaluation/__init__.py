"""Evaluates during training, and records that it did.

Files in reading order:

    evaluation_record  The record of a run's evaluations
    evaluations        A run's evaluations, each exactly once
    evaluate           Held-out metrics, each image counted exactly once over all ranks

May import: convmlp, data, data_prep.storage, distributed, engine, health, training, training.outputs.
"""
