"""Builds a run's parts from its job: each class that a setting names is chosen here.

Files in reading order:

    build_run         From a job to the run that trains it
    parts             From a job to the parts of its run
    build_task        From a job to its task and the transforms of its images, whatever the task
    build_transforms  From a job to what is done to its images, whatever the task
    initial_weights   The weights that a run starts from
    bundle_spec       The description of a job's model, which allows its use without the job

May import: checkpoints, config, convmlp, data, data_prep.console, data_prep.dataset, data_prep.images,
data_prep.storage, distributed, engine, errors, health, ledger, models, runs, tracking, training,
training.outputs, training.profiling.
"""
