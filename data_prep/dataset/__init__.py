"""A prepared dataset on disk: its manifest, its indexes, its digest.

Files in reading order:

    manifest  The shard contract
    index     The sample index beside each shard
    digest    Hashes that say what a dataset is
    places    Places where a prepared dataset may lie

May import: data_prep.errors, data_prep.source_config, data_prep.storage.
"""
