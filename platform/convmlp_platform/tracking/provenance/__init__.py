"""The facts by which a result can be accounted for and made again: the code, the environment, the job as it was given.

Files in reading order:

    code_state          The code that runs: its commit, what differs from it, and hashes that hold without git
    frozen_environment  The environment that computes: Python, packages, processor
    lineage_files       These facts, and the job, as files beside a result; MLflow gets them as artifacts
    submitted_job       A job as a user gave it, and what the driver knew when it started

May import: config, data_prep.storage, errors, tracking.
"""
