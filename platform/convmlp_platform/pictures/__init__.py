"""Draws pictures; knows arrays, not runs.

Files in reading order:

    style              The style that all pictures share
    annotate           Boxes, masks and class areas drawn over images
    contact_sheet      Many small pictures with captions on one page
    class_histogram    How many samples each class has, as a chart that is legible with ten classes and with
    predictions        Predictions beside the truth, as a sheet
    object_matches     The objects found by a model that are there, and those that it missed
    feature_map_sheet  Feature maps as pictures
    trade_off          Accuracy against what it costs, as the papers draw it

May import: nothing of ours.
"""
