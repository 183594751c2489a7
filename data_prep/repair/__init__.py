"""Makes damaged or missing shards anew, byte for byte.

Files in reading order:

    repair        Repair of a damaged dataset
    from_twin     A damaged shard made anew from what is intact in the same shard's files, of any format
    stored_shard  One shard of one format as it lies on disk, trusted only as far as checksums go

May import: data_prep.config, data_prep.console, data_prep.dataset, data_prep.errors, data_prep.images,
data_prep.output_folder, data_prep.shards, data_prep.sources,
data_prep.sources.archives, data_prep.storage, data_prep.writers.
"""
