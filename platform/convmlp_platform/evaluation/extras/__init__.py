"""Further figures of an evaluation: ReaL labels, permuted pixels, speed.

Files in reading order:

    real_labels  ImageNet ReaL (Beyer et al., "Are we done with ImageNet?", arXiv:2006.07159)
    permuted     The Mixer paper's orders of pixels, shown to a finished model
    throughput   Images per second

May import: config, convmlp, data, data_prep.storage, engine, errors, evaluation.
"""
