"""Writes an evaluation's result as files.

Files in reading order:

    result_folder  The folder of a result: its files, put there whole
    table          An evaluation's result as text
    plots          An evaluation's plots

May import: config, data_prep.console, data_prep.storage, errors, evaluation, pictures, tracking.
"""
