"""One module for each group of commands; each imports its work when it is called.

Files in reading order:

    jobs         Commands on job files
    data         `convmlp data ...`
    checkpoints  Commands on checkpoints
    models       The command predict
    compare      The command compare
    goodput      The command goodput
    pictures     `convmlp pictures ...`
    replay       `convmlp replay`

May import: checkpoints, cli, config, data, data_prep.check, data_prep.copy_dataset, data_prep.dataset,
data_prep.repair, data_prep.storage, errors, evaluation, goodput, jobs, ledger, models, replay, runs, show, sweep,
training.
"""
