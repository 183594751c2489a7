"""Turns the samples of a source into shards, in parallel.

Files in reading order:

    shard_plan       The plan of a data-prep job
    source_contents  Record of a source's contents as it was prepared
    fill             The samples of one shard, read from their source and handed to the writer of every
    shard            One task of a data-prep job
    runner           Shard tasks on a Ray cluster

May import: data_prep.annotations, data_prep.config, data_prep.dataset, data_prep.errors, data_prep.images,
data_prep.sources, data_prep.sources.parsing, data_prep.storage, data_prep.writers.
"""
