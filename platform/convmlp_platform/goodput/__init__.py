"""Accounts for every second of every worker.

Files in reading order:

    account          The account of a run's time and of its cost
    history          A run's drivers and the starts of training under them, from events.jsonl and the ranks'
    slices           The time of every worker, moment by moment
    interruptions    The interruptions of a run, and the time that each took
    goodput_log      The log of a rank's time, on disk
    excerpt          The logs of a large run in bounded time and memory
    report_text      The account of a run as text
    goodput_picture  The account of a run as a picture

May import: config, data_prep.console, data_prep.storage, health, pictures.
"""
