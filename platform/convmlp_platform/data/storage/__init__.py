"""Where a shard's bytes come from: a folder, or a URL by way of a cache.

Files in reading order:

    storage             Storage of a split's shards
    open_storage        The storage that a dataset's path means
    local               Shards in a folder of this machine, or of a file system that it mounts
    remote              A split on remote storage, fetched block by block into a local cache
    remote_dataset      A dataset at a URL before anything is read of it
    block_cache         A folder of fetched pieces of files, shared by all processes of a node and kept below a
    read_ahead          Reading ahead
    read_ahead_process  The process that reads ahead for one rank (`python -m`, started by

May import: data.order, data_prep.dataset, data_prep.errors, data_prep.storage, errors.
"""
