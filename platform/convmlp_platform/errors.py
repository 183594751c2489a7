"""The errors a user can fix. The command line prints them without a traceback and exits with code 2."""

from __future__ import annotations


class PlatformError(Exception):
    """Base of all errors that name what is wrong, where, and what to do about it."""

    exit_code = 2


class ConfigError(PlatformError):
    """The job file, or a combination of its values, is wrong."""


class DataError(PlatformError):
    """A dataset is missing, damaged, or not the one the job names."""


class CheckpointError(PlatformError):
    """A checkpoint can't be written, read, or doesn't belong to this run."""


class SupersededError(CheckpointError):
    """Another attempt at the run has begun: this one is not its writer any more."""


class TrackingError(PlatformError):
    """The tracking server or model registry can't serve the request."""


class LaunchError(PlatformError):
    """The cluster can't be reached or can't hold the job."""


class NumbersError(PlatformError):
    """Loss or gradients stayed wrong through all that `guard` allows."""
