"""Evaluates models: a folder of figures, pictures and tables for each.

Files in reading order:

    evaluation_run        An evaluation, from a checked job to the folder with its result
    subject               The subject of an evaluation
    build_subject         From an evaluation job to its parts
    findings              The findings of an evaluation beside its task's metrics, and the images that are shown
    extra_figures         Further figures: ReaL labels, permuted pixels, images per second
    result                The result of an evaluation
    evaluation_preflight  All that can be known to be wrong with an evaluation before it costs anything
    report/               Writes an evaluation's result as a folder of files
    compare/              Puts models side by side: accuracy, parameters, cost

May import: config, convmlp, data, data_prep.config, data_prep.console, data_prep.dataset, data_prep.storage,
distributed, engine, errors, goodput, models, pictures, runs, tracking, training.
"""
