"""Run folders: who owns one, how it stands, where its parts lie, and the model that a user names.

Files in reading order:

    run_folder   A run's folder; the paths in its recorded job once it was moved or copied
    lease        Who may write a run or a result: the lock RUN/driver.json
    trial_record How a trial of a sweep has ended
    run_state    The state of a run: running, waiting, silent, finished, stopped, died
    init_record  A run's own copy of the weights it starts from
    find_run     The run that a user names, or another folder of ours: one look-up for every command
    find_dataset  The prepared dataset that a user names
    found_model  A model that was found: its weights, and what is known of it
    find_model   The notation by which a user names a model, the same one for all jobs and commands

May import: checkpoints, config, convmlp, data, data_prep.console, data_prep.dataset, data_prep.errors,
data_prep.storage, errors, goodput, health, models, registry, tracking.
"""
