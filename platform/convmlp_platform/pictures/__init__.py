"""Draws pictures; knows arrays, not runs.

Files in reading order:

    style              The style that all pictures share
    annotate           Boxes, masks and class areas drawn over images
    contact_sheet      Many small pictures with captions on one page
    charts             Charts by matplotlib: values of classes, accuracy against cost, and how all charts look
    predictions        Predictions beside the truth, as a sheet
    object_matches     The objects found by a model that are there, and those that it missed
    feature_map_sheet  Feature maps as pictures

May import: nothing of ours.
"""
