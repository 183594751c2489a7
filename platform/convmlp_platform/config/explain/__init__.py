"""Reads YAML by our rules and says what is wrong with it.

Files in reading order:

    job_file   The values of a job file, laid over those of the file that it `extends`
    problems   Problems of a job file, in the user's words
    suggest    The name a user probably meant
    yaml_text  YAML as people mean it

May import: errors.
"""
