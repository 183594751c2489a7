"""A task joins model, loss and metrics: `Task.forward(batch)` returns the loss.

Files in reading order:

    task            The task that a training engine wraps
    task_model      The detectors and segmenters by the name of their task
    classification  Image classification
    detection       Object detection and instance segmentation
    segmentation    Semantic segmentation
    coco_metrics    COCO's average precision and recall, by pycocotools, over the images of all ranks
    task_cost       Multiply-accumulates of a task's whole model, where what follows the backbone depends
    heads/          Detection and segmentation heads that stand on a backbone

May import: convmlp.model_cost, convmlp.transforms, convmlp.weights, convmlp.zoo.
"""
