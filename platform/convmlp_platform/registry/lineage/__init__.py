"""The chain behind a registered version: checkpoint, run, job, code, environment, data, parents, decisions, and more.

Files in reading order:

    read_lineage   The chain, read from the registry and the runs alone
    run_facts      A run's part of it, from its tags and inputs
    version_facts  A version's part: its checkpoint, the decisions on it, its evaluations
    lineage_text   The chain as lines for people
    stored_files   The files behind a version: job, code, environment, weights

May import: config, data_prep.console, data_prep.storage, errors, models, registry, tracking.
"""
