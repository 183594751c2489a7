"""The one error family of data preparation."""


class DataPrepError(ValueError):
    """A dataset can't be prepared, read or trusted; the message says what, where and what to do."""
