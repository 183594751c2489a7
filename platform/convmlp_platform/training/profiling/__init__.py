"""Records some steps of a run operator by operator, as its job asks (`profile.steps`).

Files in reading order:

    profiler        The profile of some steps, taken while the run trains
    trace_reading   What a trace says of its steps
    profile_page    A profile on one page

May import: config, data_prep.console, data_prep.storage, engine, health, runs, torch_internals, tracking,
training.
"""
