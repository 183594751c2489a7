"""A prepared dataset on disk: its manifest, its indexes, its digest.

Files in reading order:

    manifest  The shard contract
    index     The sample index beside each shard
    digest    Hashes that say what a dataset is
    places    Places where a prepared dataset may lie
    readback  A shard file read once from its start to its end

May import: data_prep.config, data_prep.errors, data_prep.storage.
"""
