"""A trained model as a folder, and its predictions.

Files in reading order:

    bundle       The portable model
    task_spec    The description of the task of a bundle's model
    prediction   The prediction of a model for an image
    predictors/  Predicts with a bundle: one class for each task
    serving/     Answers requests for predictions, in whatever form their images come

May import: config, convmlp, data_prep.config, data_prep.errors, data_prep.images, data_prep.storage, errors.
"""
