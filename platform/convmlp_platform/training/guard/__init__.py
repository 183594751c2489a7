"""Watches the numbers: skips a bad step, goes back, or stops the run.

Files in reading order:

    guard      The choice of an action for a step with wrong numbers
    bad_steps  Putting a step whose numbers are wrong on record
    incidents  The record of what went wrong in a run
    agreement  The exchange of the facts that all ranks need about a step before its update, in one

May import: config, data, data_prep.console, data_prep.storage, distributed, engine, errors, ledger.
"""
