"""Runs and checks a job of any kind: `convmlp run`, `convmlp check`, `convmlp demo`.

Files in reading order:

    run_job         From a checked job to work on a cluster
    check_job       All that a job of any kind would be refused for before its first step
    preparation     The steps after a finished data preparation
    evaluation_job  An evaluation on one worker of a Ray cluster, or in this process
    demo            `convmlp demo`, `make demo`

May import: config, data_prep.annotations, data_prep.console, data_prep.dataset, data_prep.errors, data_prep.output,
data_prep.prepare, data_prep.shards, data_prep.storage, distributed, errors, evaluation, launch, runs, show, sweep,
tracking, training.
"""
