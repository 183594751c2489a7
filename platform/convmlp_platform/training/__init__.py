"""A training run: `run.run` is its story, `trainer.Trainer` its loop.

Files in reading order:

    run              A training run, from a checked job to a registered model
    trainer          The loop
    step             One step of training, under the guard; the means of steps for the log
    step_plan        Where a run stands, how long it is, and what happens at which step
    callbacks        The callbacks that watch a run
    given_callbacks  Callbacks that may fail: those that a job names
    saving           A run's state in and out of checkpoints
    stop_request     Being told to stop
    build/           Builds a run's parts from its job: each class that a setting names is chosen here
    evaluation/      Evaluates during training, and records that it did
    guard/           Watches the numbers: skips a bad step, goes back, or stops the run
    profiling/       Records some steps of a run operator by operator, as its job asks
    outputs/         What a run leaves for people: best model, metrics, pictures
    preflight/       Finds a job's problems before any worker starts

May import: checkpoints, config, convmlp, data, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.images, data_prep.prepare, data_prep.sources, data_prep.storage, distributed, engine, errors, goodput,
health, ledger, models, pictures, registry, runs, torch_internals, tracking.
"""
