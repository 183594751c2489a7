"""Verifies a dataset's files against its manifest.

Files in reading order:

    verify         Is a prepared dataset on disk what its manifest says?
    remote_verify  `verify` for a dataset at a URL
    readback       A shard file read once from its start to its end

May import: data_prep.dataset, data_prep.errors, data_prep.sources, data_prep.storage, data_prep.writers.
"""
