"""Where a shard's bytes come from: a folder, or a URL by way of a cache.

Files in reading order:

    storage      The storage that a dataset's path means
    local        Shards in a folder of this machine, or of a file system that it mounts
    remote       A split on remote storage, fetched block by block into a local cache
    block_cache  A folder of fetched pieces of files, shared by all processes of a node and kept below a size
    read_ahead   Reading ahead: the plan of a rank, and the process that fetches for it

May import: data.sample_order, data_prep.dataset, data_prep.errors, data_prep.storage, errors.
"""
