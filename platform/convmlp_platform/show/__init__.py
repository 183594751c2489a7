"""Draws datasets, feature maps and predictions for the command line.

Files in reading order:

    show_dataset      A look at a prepared dataset
    show_features     Feature maps of one or several models, of image files or of a dataset's images, on one
    show_predictions  A page with a trained model's predictions for a dataset's images, beside the truth

May import: convmlp, data, data_prep.annotations, data_prep.console, data_prep.dataset, errors, models, pictures, runs,
training.
"""
