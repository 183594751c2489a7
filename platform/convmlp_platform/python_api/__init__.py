"""The platform from Python: notebooks, scripts, other people's training loops. docs/python.md shows it.

Files in reading order:

    datasets/  Prepared datasets for any training loop

May import: config, convmlp, data, data_prep.annotations, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.images, data_prep.storage, data_prep.writers, errors, runs.
"""
