"""Augmentation: each image by itself, keyed by a seed; `mixing` a whole batch.

Files in reading order:

    classification  Images for training and for evaluation
    joint_view      The part of an image that is seen, and its size
    detection       Images and their objects for detection and instance segmentation
    segmentation    Images and their label maps for semantic segmentation
    pixels          Operations on pixels
    mixing          Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) of a
    pixel_order     Pixels in another order, the same for every image

May import: nothing of ours.
"""
