"""Where checkpoints lie: a folder or an object store.

Files in reading order:

    store         Storage of checkpoints
    local_store   Checkpoints in a folder
    remote_store  Checkpoints on remote storage by URL, which has no rename

May import: checkpoints, data_prep.dataset, data_prep.errors, data_prep.storage.
"""
