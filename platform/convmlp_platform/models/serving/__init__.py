"""Answers requests for predictions, in whatever form their images come; knows no MLflow and no pandas.

Files in reading order:

    served_model    A bundle that answers batches: bad images are errors of their rows
    given_batch     The images of a request, from files' bytes, texts and arrays, within limits
    answer_columns  Predictions as the plain columns of a table

May import: data_prep.errors, data_prep.images, errors, models, models.predictors.
"""
