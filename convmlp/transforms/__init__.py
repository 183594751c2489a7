"""Augmentation: each image by itself, keyed by a seed.

Files in reading order:

    image_transforms      Images for training and for evaluation
    joint_view            The part of an image that is seen, and its size
    object_transforms     Images and their objects for detection and instance segmentation
    label_map_transforms  Images and their label maps for semantic segmentation
    pixels                Operations on pixels
    pixel_order           Pixels in another order, the same for every image

May import: nothing of ours.
"""
