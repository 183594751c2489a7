"""What a run leaves for people: best model, metrics, pictures.

Files in reading order:

    outputs           The outputs of a run for people
    checkpoint_log    The record of a run's checkpoints, in its journal
    record            Opening a run's record in MLflow, and putting its best model into the registry
    goodput_callback  Keeping the record of every second of this rank, for `goodput.account` to account
    system_metrics    What a run does to its nodes, under MLflow's names for it
    sample_pictures   The first held-out images with what the model says of them, kept out of an evaluation
    tensorboard       A run's metrics as TensorBoard's event files
    curves            The run's curves as one picture
    exactness         Whether a computation done again on another machine gives the same bits, and if not

May import: checkpoints, config, convmlp, data, data_prep.dataset, data_prep.storage, distributed, engine, errors,
goodput, health, ledger, models, pictures, registry, runs, tracking, training, training.build, training.evaluation,
training.guard.
"""
