"""Writes an evaluation's result as files.

Files in reading order:

    write    All files of a result into one folder
    table    An evaluation's result as text
    plots    An evaluation's plots
    samples  Some of the images with what the model says of them, kept while all go by

May import: config, data, evaluation, pictures, training.
"""
