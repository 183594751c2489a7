"""Runs and checks a job of any kind: `convmlp run`, `convmlp check`, `convmlp demo`.

Files in reading order:

    run_job          From a job to work on a cluster; and all that it would be refused for
    read_job         Decides a job's values of `auto` by its dataset and by the machines
    kinds            The kinds of jobs: for each, all that `convmlp check` and `convmlp run` ask of a job of that kind
    training_job     A training job: on a Ray cluster under its supervisor, or in this process
    preparation_job  A data preparation, on a Ray cluster or in this process; then its pictures and its run in MLflow
    evaluation_job   An evaluation, on one worker of a Ray cluster or in this process; then its run in MLflow
    promotion_job    A promotion, on one worker of a Ray cluster or in a child process; its record
    demo             `convmlp demo`, `make demo`

May import: config, data, data_prep.annotations, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.output_folder, data_prep.prepare, data_prep.shards, data_prep.storage, data_prep.summary, distributed,
errors, evaluation, launch, promotion, report, runs, show, sweep, tracking, training.
"""
