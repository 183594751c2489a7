"""Shows whether training is alive, and why not.

Files in reading order:

    heartbeat/  What a rank is doing now, for those who watch it
    hangs/      Finds runs that stand still, and the rank that the others wait for
    events      The events of a run, as its driver saw them

May import: config, data_prep.storage.
"""
