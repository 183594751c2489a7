"""Predicts with a bundle: one class for each task.

Files in reading order:

    predictor     From images to what a bundle's model says of them, whatever its task
    classifier    Class names with probabilities, by a bundle
    detector      Objects with boxes, and masks where the model has them, by a bundle
    segmenter     A class for each pixel, by a bundle
    given_images  Images that somebody wants predictions for, from whatever they come as
    whole_images  Whole images as a detector's or segmenter's evaluation sees them

May import: convmlp, data_prep.config, data_prep.errors, data_prep.images, errors, models.
"""
