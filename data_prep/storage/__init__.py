"""Files, JSON, locks, URLs and retries; the platform uses them too.

Files in reading order:

    files         Durable files
    json_files    JSON files of ours: written, and read as files that may be damaged
    lock_holder   Who holds a lock, and whether it lives
    locks         Locks between processes, on one machine or on several that share a folder
    urls          Locations of files
    secret_texts  Texts that people wrote (code, diffs, job files), with the secrets in them replaced
    remote_files  Files by URL (`s3://`, `gs://`, `https://`, ...) through fsspec
    retry         Patience with remote storage, and errors of it that a user understands

May import: data_prep.errors.
"""
