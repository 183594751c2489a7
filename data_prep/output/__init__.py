"""The folder that a preparation fills.

Files in reading order:

    output_folder  The output folder of a data-prep job
    finished       A finished dataset met by a job
    summary        From finished shards to the manifest

May import: data_prep.annotations, data_prep.config, data_prep.dataset, data_prep.errors, data_prep.shards,
data_prep.source_config, data_prep.storage, data_prep.writers.
"""
