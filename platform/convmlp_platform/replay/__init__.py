"""Does a recorded step again, bit for bit.

Files in reading order:

    replay            One step of a run done again on one machine
    step_record       The record that a run left of one step
    start_state       From which weights a step is replayed
    recorded_batches  Reading again what a run consumed
    replay_report     A replay for people
    search/           Finds the samples and the layer that make a step's numbers go wrong

May import: checkpoints, config, convmlp, data, data_prep.dataset, data_prep.errors, data_prep.storage, distributed,
engine, errors, ledger, pictures, runs, tracking, training.
"""
