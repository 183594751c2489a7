"""The two errors of data preparation: one ends the job, the other leaves one sample out."""


class DataPrepError(ValueError):
    """A dataset can't be prepared, read or trusted; the message says what, where and what to do."""


class RejectedSample(ValueError):
    """One sample can't be used; the message says why and goes into `rejected.jsonl`."""
