"""Decides a job's values of `auto` as this machine does: by the dataset, wherever it is, and by the machines.

For `config.load`, which knows neither. Both are imported for jobs with such values only: PyTorch comes with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_prep.dataset.manifest import DatasetManifest


def manifest_at(path: str) -> DatasetManifest:
    """The manifest of a dataset, in a folder or at a URL.

    Raises:
        DataError: as `data.dataset.split.open_manifest`.
    """
    from convmlp_platform.data.dataset.split import open_manifest

    return open_manifest(path)


def of_machines(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of a training job that follow from the machines it would run on, see
    `launch.cluster.machine_values.decided`."""
    from convmlp_platform.launch.cluster.machine_values import decided

    return decided(values, where)
