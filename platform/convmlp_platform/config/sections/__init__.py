"""The sections of a job file: a frozen class for each.

Files in reading order:

    section        The parts that all sections of a job file are made of
    recipe         The sections of a training job that are its recipe
    execution      The sections of a training job beside its recipe (`config.sections.recipe`)
    resilience     The sections of a training job about what may go wrong
    task_section   The task that a model is trained to do
    model_options  The further arguments of a model that a job, a bundle or a checkpoint may name

May import: config.explain.
"""
