"""One module for each group of commands; each imports its work when it is called.

Files in reading order:

    jobs      Commands on job files; the demo
    data      `convmlp data ...`
    models    Commands on models: models, predict, compare
    registry  `convmlp registry ...`, `convmlp reproduce`
    runs      Commands on a run's records: checkpoints, goodput, report, replay-tracking
    overview  Commands that show how runs are: runs, watch
    replay    `convmlp replay`
    pictures  `convmlp pictures ...`
    k8s       `convmlp k8s ...`

May import: checkpoints, cli, config, convmlp, data_prep.console, data_prep.copy_dataset, data_prep.repair,
data_prep.storage, data_prep.verify, errors, evaluation, goodput, jobs, kubernetes, ledger, models, overview, registry,
replay, report, reproduction, runs, show, tracking, training.
"""
