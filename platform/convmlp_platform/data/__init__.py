"""Reads batches: which samples, from where, checked, decoded.

Files in reading order:

    sample_order  Decides the samples of a step and of a rank: a pure function of seed and step
    dataset/      A split of a prepared dataset: its checked samples, and those that are damaged
    storage/      Where a shard's bytes come from: a folder, or a URL by way of a cache
    reading/      Reads, decodes and augments micro-batches

May import: convmlp, data_prep.annotations, data_prep.dataset, data_prep.errors, data_prep.images, data_prep.storage,
distributed, errors, pictures, torch_internals.
"""
