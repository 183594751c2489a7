"""The name a user probably meant: near in spelling, an abbreviation, or the word other trainers use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What timm's train.py, Lightning, Transformers and torchrun call things, where spelling leads nowhere.
_OTHER_WORDS = {
    "accelerator": "launch.use_gpu",
    "amp": "engine.precision",
    "arch": "model.name",
    "backend": "engine.strategy",
    "batch_size": "training.global_batch_size",
    "checkpoint_dir": "checkpoint.path",
    "data_dir": "data.path",
    "device": "launch.use_gpu",
    "devices": "launch.num_workers",
    "dtype": "engine.precision",
    "gpus": "launch.num_workers",
    "gradient_accumulation_steps": "training.micro_batch_size",
    "grad_accum_steps": "training.micro_batch_size",
    "max_grad_norm": "training.clip_grad_norm",
    "mixed_precision": "engine.precision",
    "num_gpus": "launch.num_workers",
    "max_iters": "training.steps",
    "num_train_epochs": "training.epochs",
    "opt": "optimizer.name",
    "output_dir": "checkpoint.path",
    "per_device_train_batch_size": "training.micro_batch_size",
    "random_seed": "seed",
    "reprob": "augment.random_erasing",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep",
    "smoothing": "loss.label_smoothing",
    "warmup_steps": "schedule.warmup_steps",
    "world_size": "launch.num_workers",
}


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `names` nearest in spelling to `word`, or None where none is near."""
    names = list(names)
    # Short names are swapped, not misspelt: no ratio finds `lr` from `rl`.
    swapped = (name for name in names if sorted(name) == sorted(word))
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=cutoff)), next(swapped, None))


def nearest_field(key: str, section: str, siblings: Iterable[str], all_fields: Iterable[str]) -> str | None:
    """The dotted name meant by an unknown `key` in `section` ("" at the top).

    `siblings` are the names valid in that section; `all_fields` are the dotted names of the whole schema.
    Searched, first hit wins: spelling within the section; abbreviations within it; other trainers' words;
    the same name in another section; spelling among all names.
    """
    siblings, all_fields = list(siblings), list(all_fields)
    prefix = f"{section}." if section else ""
    if near := nearest(key, siblings) or _abbreviation(key, siblings):
        return prefix + near
    if (known := _OTHER_WORDS.get(key)) in all_fields:
        return known
    by_leaf: dict[str, str] = {}
    for name in all_fields:
        by_leaf.setdefault(name.rpartition(".")[2], name)
    if key in by_leaf:
        return by_leaf[key]
    near = nearest(key, by_leaf, cutoff=0.75) or _abbreviation(key, by_leaf)
    return by_leaf[near] if near else None


def _abbreviation(key: str, names: Iterable[str]) -> str | None:
    """`learning_rate` ↔ `lr`, `wd` ↔ `weight_decay`, `learning` ↔ nothing."""
    for name in names:
        if len(key) > 1 and len(name) > 1 and (_initials(key) == name or _initials(name) == key):
            return name
    return None


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))
