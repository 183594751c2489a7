"""A split of a prepared dataset: its checked samples, and those that are damaged.

Files in reading order:

    split        One split of a prepared dataset, read sample by sample through its index, from either
    damage       A sample that can't be read as it was written
    sample_view  One split of a prepared dataset seen through its task

May import: data.reading, data.storage, data_prep.annotations, data_prep.dataset, data_prep.errors, data_prep.images,
data_prep.storage, errors, pictures.
"""
