"""COCO: images beside a JSON document of their annotations.

Files in reading order:

    coco         COCO detection
    document     An `instances_*.json` document
    json_ranges  Byte ranges of the parts of a big JSON file, found in one pass that holds a few

May import: data_prep.annotations, data_prep.config, data_prep.console, data_prep.errors, data_prep.sources,
data_prep.sources.parsing.
"""
