"""Reads the file formats of published datasets; nothing foreign is run.

Files in reading order:

    source_folder  A source's folder as people fill it: files and their keys, links, tables of class names
    mat_file       MATLAB files, as some publishers ship their labels
    plain_pickle   Pickles of plain values and arrays of numbers, read without Python's unpickler

May import: data_prep.errors.
"""
