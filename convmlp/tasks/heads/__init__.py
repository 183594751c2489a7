"""Detection and segmentation heads that stand on a backbone.

Files in reading order:

    anchors       Anchors on exact strides and in float32, and images padded to one size
    pyramid       The feature pyramid (FPN, arXiv:1612.03144) over the feature maps of any hierarchical
    retinanet     RetinaNet (arXiv:1708.02002) over a feature pyramid
    mask_rcnn     Mask R-CNN (arXiv:1703.06870) over a feature pyramid
    semantic_fpn  Semantic FPN (Panoptic Feature Pyramid Networks, arXiv:1901.02446)

May import: convmlp.weights, convmlp.zoo.
"""
