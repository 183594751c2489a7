"""Records the samples that each step used, and proves that each was used once an epoch.

Files in reading order:

    ledger         The record of which samples training consumed
    ledger_reader  Reading a run's ledger, and which of its attempts count
    ledger_walk    Going through a ledger's surviving steps, some at a time
    proof          The proof that each sample was used exactly once an epoch, from a run's ledger alone
    proof_report   The report of what a ledger proves, for people and programs

May import: config, data, data_prep.errors, data_prep.storage, distributed, errors.
"""
