"""A task joins model, loss and metrics: `Task.forward(batch)` returns the loss.

Files in reading order:

    task            The task that a training engine wraps
    classification  Image classification, and the mixing of its batches
    detection       Object detection and instance segmentation
    segmentation    Semantic segmentation
    coco_metrics    COCO's average precision and recall, by pycocotools, over the images of all ranks
    heads/          Detectors and segmenters that stand on a backbone; `create_dense_model` makes one by its task

May import: convmlp.transforms, convmlp.weights, convmlp.zoo.
"""
