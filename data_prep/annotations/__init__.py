"""Boxes, masks and their checks, as they are stored beside an image.

Files in reading order:

    annotations       Detection annotations
    detection_checks  Problems of one object of a detection annotation
    object_report     Preparation's report of annotated objects

May import: data_prep.console, data_prep.dataset, data_prep.errors, data_prep.images.
"""
