"""The command `convmlp`.

Files in reading order:

    main       The command `convmlp`
    common     The parts that all commands share
    completion  `convmlp completion`: commands, options and runs on the TAB key
    commands/  One module for each group of commands; each imports its work when it is called

May import: checkpoints, config, convmlp, data_prep.console, data_prep.copy_dataset, data_prep.errors,
data_prep.repair, data_prep.storage, data_prep.verify, errors, evaluation, goodput, jobs, kubernetes, ledger, models,
overview, registry, replay, report, reproduction, runs, show, tracking, training.
"""
