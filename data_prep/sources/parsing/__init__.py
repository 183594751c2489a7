"""Reads the file formats of published datasets; nothing foreign is run.

Files in reading order:

    source_files  Files of a source folder
    names         Names that every tool understands
    text_tables   Text files that people write
    mat_file      MATLAB files, as some publishers ship their labels
    plain_pickle  Pickles of plain values and arrays of numbers, read without Python's unpickler

May import: data_prep.errors.
"""
