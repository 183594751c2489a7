"""A prepared dataset on disk: its manifest, its indexes, its digest.

Files in reading order:

    manifest   The shard contract
    index      The sample index beside each shard
    checksums  Hashes that say what a dataset is, and a shard file read back against them
    places     Places where a prepared dataset may lie

May import: data_prep.config, data_prep.errors, data_prep.storage.
"""
