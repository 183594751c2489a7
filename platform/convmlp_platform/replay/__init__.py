"""Does a recorded step again, bit for bit.

Files in reading order:

    replay_step       One step of a run done again on one machine
    step_record       The record that a run left of one step, and the weights from which it is replayed
    recorded_batches  Reading again what a run consumed
    sample_search     By which samples a step's numbers go wrong
    partial_step      One micro-batch of a step, computed in part, and its first layer with bad numbers
    replay_report     A replay for people

May import: checkpoints, config, convmlp, data, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.storage, distributed, engine, errors, ledger, pictures, runs, tracking, training.
"""
