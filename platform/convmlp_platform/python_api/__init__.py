"""The platform from Python: notebooks, scripts, other people's training loops. docs/python.md shows it.

Files in reading order:

    run_jobs        `prepare`, `train` and `evaluate`: each runs its job as `convmlp run` does
    job_values      `load_job`: jobs, with settings laid over them
    folder_recipes  The recipes of calls without a job file
    loaded_model    `load_model`: a trained model as a torch module with its own preprocessing
    datasets/       `open_dataset`: prepared datasets for any training loop

May import: config, convmlp, data, data_prep.annotations, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.images, data_prep.storage, data_prep.writers, errors, evaluation, jobs, launch, models, runs, training.
"""
