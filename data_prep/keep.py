"""A dataset of some of a source's samples: for trials, and for learning a few images by heart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from data_prep.errors import DataPrepError
from data_prep.sources.base import Listing, SampleRef

Keep = Mapping[str, int | tuple[str, ...]]
"""Split → how many of its samples, the first by key, or which ones, by key."""

_SHOWN = 3


def kept(listing: Listing, keep: Keep) -> Listing:
    """The listing with only the samples that `keep` names; a split that it doesn't name keeps all of them.

    Raises:
        DataPrepError: the source has no such split or key.
    """
    if unknown := sorted(keep.keys() - listing.splits.keys()):
        raise DataPrepError(
            f"keep.{unknown[0]}: the source has no such split, only {', '.join(sorted(listing.splits))}"
        )
    splits = {split: _chosen(split, refs, keep.get(split)) for split, refs in listing.splits.items()}
    return replace(listing, splits=splits)


def _chosen(
    split: str, refs: Sequence[SampleRef], wanted: int | tuple[str, ...] | None
) -> Sequence[SampleRef]:
    if wanted is None:
        return refs
    if isinstance(wanted, int):
        return sorted(refs)[:wanted]
    by_key = {ref.key: ref for ref in refs}
    if missing := [key for key in wanted if key not in by_key]:
        shown = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
        raise DataPrepError(
            f"keep.{split}: {len(missing)} of the {len(wanted)} keys are not among the source's {len(refs):,} samples: "
            f"{shown}; a key is a file's name without its ending"
        )
    return [by_key[key] for key in sorted(wanted)]
