"""The parts of a run's report: each a function from `ReportedRun` to blocks, which says in a sentence what isn't there.

Files in reading order:

    curves_section   Loss, metrics, learning rate and throughput over steps
    time_sections    What happened when, and where the time went
    data_section     The dataset, the proof of the ledger, a contact sheet
    model_sections   Evaluations, and a picture of predictions
    origin_sections  Hardware, and what the model comes from

May import: config, data, data_prep.console, data_prep.dataset, data_prep.storage, errors, evaluation, goodput, ledger,
models, pictures, report, runs, tracking, training.
"""
