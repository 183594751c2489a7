"""Reads archives without unpacking them.

Files in reading order:

    tar_members    Places of the members of an uncompressed tar, found by reading its headers and nothing else
    archive_bytes  The bytes of archives: read once from front to back, or at the places of samples
    published      Files as their publisher offers them: archives, or the folders that unpacking them gives

May import: data_prep.console, data_prep.errors, data_prep.storage.
"""
