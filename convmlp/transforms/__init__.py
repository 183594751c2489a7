"""Augmentation: each image by itself, keyed by a seed.

Files in reading order:

    classification  Images for training and for evaluation
    joint_view      The part of an image that is seen, and its size
    detection       Images and their objects for detection and instance segmentation
    segmentation    Images and their label maps for semantic segmentation
    pixels          Operations on pixels
    pixel_order     Pixels in another order, the same for every image

May import: nothing of ours.
"""
