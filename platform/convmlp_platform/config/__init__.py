"""Job files: typed, strict, explained.

Files in reading order:

    schema        The job file, by its `kind`
    load          From a job file to a checked job, and back to text
    identity      Identity of a training run
    paths         Relative paths of a job file
    overrides     `--set a.b=c`
    evaluate_job  The sections of an evaluation job, `kind: evaluate`
    promote_job   The sections of a promotion, `kind: promote`
    sweep_job     The file of a sweep, `kind: sweep`
    sections/     The sections of a job file: a frozen class for each
    explain/      Reads YAML by our rules and says what is wrong with it
    automatic     Values that a training job leaves to its dataset

May import: data_prep.config, data_prep.dataset, data_prep.errors, data_prep.storage, errors.
"""
