"""Finds a job's problems before any worker starts.

Files in reading order:

    preflight              All that can be known to be wrong with a training before it costs anything
    preparation_preflight  All that can be known to be wrong with a preparation before it costs anything, and
                           what
    advice                 Lines of `convmlp check` on settings that make little sense for the dataset or for
                           the
    image_size             Images too small for a network, or of a size it can't take
    memory                 The cost of a model before it is built
    scaling                The step, memory and cost of a job on other numbers of GPUs, from the speed of one

May import: checkpoints, config, convmlp, data, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.prepare, data_prep.sources, data_prep.storage, engine, errors, runs, tracking, training, training.build,
training.guard.
"""
