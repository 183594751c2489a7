"""Reads archives without unpacking them.

Files in reading order:

    tar_members  Places of the members of an uncompressed tar, found by reading its headers and nothing
    tar_stream   Published archives (`.tar.gz`, `.tgz`, `.tar`) read once from front to back, in bounded
    published    Files as their publisher offers them
    unpacked     A published archive and the folder that unpacking it gives, either of which may be what
    byte_ranges  Random access to samples that lie inside big files, such as tars that are never

May import: data_prep.errors, data_prep.storage.
"""
