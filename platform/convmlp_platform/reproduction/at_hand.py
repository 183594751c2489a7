"""What a reproduction needs and has here: the same data, recipe, code, environment; and what can't be equal.

A finding is `same`; `differs`, when the weights may differ; `unknown`, when the record doesn't say; or `missing`, when
training can't begin.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from convmlp_platform.config.identity import identity_fields, identity_of
from convmlp_platform.config.schema import TrainJob
from convmlp_platform.data.dataset.split import open_manifest
from convmlp_platform.errors import DataError, PlatformError
from convmlp_platform.registry.lineage.run_facts import RunFacts
from convmlp_platform.reproduction.rebuild import Rebuilt
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.tracking.provenance.code_state import CodeState, this_code
from convmlp_platform.tracking.provenance.frozen_environment import frozen_environment
from convmlp_platform.tracking.provenance.lineage_files import CODE, CODE_DIFF, ENVIRONMENT
from convmlp_platform.tracking.provenance.submitted_job import StoredCode
from data_prep.console import counted, some_of
from data_prep.storage.json_files import DamagedJson, read_json

Kind = Literal["same", "differs", "unknown", "missing"]
DECISIVE = (
    "torch", "numpy", "torchvision", "timm", "pillow", "simplejpeg", "scipy", "torchmetrics", "accelerate", "deepspeed",
    "ffcv",
)  # fmt: skip
"""Packages that compute weights, or the pixels that they are computed from."""
_SHOWN = 6


@dataclass(frozen=True)
class AtHand:
    """One finding. `what`: data, start, recipe, code, packages, processor, workers, callbacks, history, registered
    weights."""

    kind: Kind
    what: str
    text: str


def at_hand(rebuilt: Rebuilt, into: Path) -> list[AtHand]:
    """Compare what is on record with this machine. Starts nothing.

    Args:
        into: an empty folder for weights that the run begins from.
    """
    digest, data = _data(rebuilt.job)
    weights, start = _start(rebuilt, into)
    found = [data, *start]
    if digest is not None and (rebuilt.job.model.init_from is None or weights is not None):
        found.append(_recipe(rebuilt, digest, weights))
    found += _code(rebuilt.folder, rebuilt.run)
    found += _environment(rebuilt)
    found += _workers(rebuilt)
    if rebuilt.left_out and not rebuilt.job.callbacks:
        names = ", ".join(rebuilt.left_out)
        told = f"left out, as they are code and change no weights: {names} (--set 'callbacks=[{names}]' takes them)"
        found.append(AtHand("same", "callbacks", told))
    return found


def _data(job: TrainJob) -> tuple[str | None, AtHand]:
    """The dataset's digest, where it is here."""
    try:
        manifest = open_manifest(job.data.path, job.data.digest)
    except DataError as error:
        return None, AtHand("missing", "data", f"{error} (--dataset PATH says where it lies here)")
    for split in (job.data.train_split, job.data.eval_split):
        if (lack := manifest.lacks(split)) is not None:
            return None, AtHand("missing", "data", f"{job.data.path} {lack}")
    samples = manifest.splits[job.data.train_split].num_samples
    text = f"{manifest.name}, {samples:,} training samples, at {job.data.path}"
    if job.data.digest is None:
        return manifest.digest, AtHand("unknown", "data", f"{text}; which dataset it was isn't on record")
    return manifest.digest, AtHand("same", "data", f"{text}, digest {manifest.digest}")


def _start(rebuilt: Rebuilt, into: Path) -> tuple[str | None, list[AtHand]]:
    """The hash of the weights that the run starts from, as identities count it."""
    source, parent = rebuilt.job.model.init_from, rebuilt.lineage.parent
    if source is None:
        return None, []
    try:
        found = find_model(source, rebuilt.job.tracking, into, rebuilt.job.model.init_weights)
    except PlatformError as error:
        return None, [AtHand("missing", "start", f"the weights that it began from: {error}")]
    sha256 = found.lineage["init.weights_sha256"]
    recorded = None if parent is None else parent.sha256
    if recorded is None:
        kind: Kind = "unknown"
        text = f"{found.pinned}; which weights it began from isn't on record"
    elif recorded != sha256:
        kind = "differs"
        text = f"{found.pinned} has other weights than those that it began from: {sha256}, not {recorded}"
    else:
        kind, text = "same", f"{found.pinned}, sha256:{sha256}"
    return f"sha256:{sha256}", [AtHand(kind, "start", text)]


def _recipe(rebuilt: Rebuilt, digest: str, weights: str | None) -> AtHand:
    now, then = identity_of(identity_fields(rebuilt.job, digest, weights)), rebuilt.run.identity
    if then is None:
        return AtHand("unknown", "recipe", "the run's identity isn't on record")
    if now != then:
        return AtHand("differs", "recipe", f"its identity is {now}, that of the run was {then}")
    return AtHand("same", "recipe", f"identity {then}")


def _code(folder: Path, run: RunFacts) -> Iterator[AtHand]:
    here, then = this_code(), recorded_code(folder)
    if then is None or not then.files:
        if run.code.commit is None or here.commit is None:
            yield AtHand("unknown", "code", "what code it was isn't on record")
        elif run.code.commit == here.commit and run.code.dirty is False and here.dirty is False:
            yield AtHand("same", "code", f"commit {here.commit}, clean")
        else:
            yield AtHand("differs", "code", f"it was commit {run.code.commit}, here it is {here.commit}")
        return
    commit = f"commit {then.commit}" if then.commit else "commit unknown"
    if then.trees == here.trees:
        yield AtHand("same", "code", f"all {len(then.files)} source files are equal ({commit})")
        return
    differing = sorted(
        name for name in then.files.keys() | here.files.keys() if then.files.get(name) != here.files.get(name)
    )
    text = f"{len(differing)} source files differ: {some_of(differing, _SHOWN)}; it was {commit}"
    if then.dirty:
        whole = then.diff is not None and then.diff.is_whole
        patch = folder / CODE_DIFF
        text += f" and {patch} (git apply)" if whole else f" and changes that are not whole in {patch}"
    yield AtHand("differs", "code", text)


def recorded_code(folder: Path) -> CodeState | None:
    """The code as the run recorded it, from the rebuilt folder; None where it isn't on record."""
    try:
        return read_json(folder / CODE, StoredCode).state(folder / CODE_DIFF)
    except (OSError, DamagedJson):
        return None


def _environment(rebuilt: Rebuilt) -> Iterator[AtHand]:
    try:
        then: dict[str, Any] = read_json(rebuilt.folder / ENVIRONMENT, dict[str, Any])
    except (OSError, DamagedJson):
        then = _from_tags(rebuilt.run.environment)
    here = frozen_environment()
    yield from _packages(_mapping(then.get("packages")), here["packages"], _mapping(then.get("python")))
    yield from _processor(rebuilt, then, here)


def _from_tags(facts: Mapping[str, str]) -> dict[str, Any]:
    """What an older release recorded, in the form of today's."""
    packages = {name: facts[name] for name in DECISIVE if name in facts}
    return {
        "packages": packages,
        "python": {"version": facts["python"]} if "python" in facts else {},
        "cpu": {"model": facts.get("cpu")},
        "torch": {"cpu_capability": facts.get("instructions")},
    }


def _packages(
    then: Mapping[str, Any], here: Mapping[str, str], python: Mapping[str, Any]
) -> Iterator[AtHand]:
    if not then:
        yield AtHand("unknown", "packages", "which packages there were isn't on record")
        return
    changed = {
        name: (str(old), here.get(name, "none"))
        for name, old in then.items()
        if here.get(name, "none") != old
    }
    decisive = [
        f"{name} {changed[name][0]} (here {changed[name][1]})" for name in DECISIVE if name in changed
    ]
    version = str(python.get("version", "unknown"))
    if version != platform.python_version():
        decisive.append(f"Python {version} (here {platform.python_version()})")
    others = len(changed) - sum(name in changed for name in DECISIVE)
    if decisive:
        yield AtHand("differs", "packages", ", ".join(decisive))
    elif others:
        yield AtHand(
            "same",
            "packages",
            f"those that compute are equal; {others} of {len(then)} others have another version",
        )
    else:
        yield AtHand("same", "packages", f"all {len(then)} have the same version")


def _processor(rebuilt: Rebuilt, then: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[AtHand]:
    import torch

    device = rebuilt.run.device
    if device is not None and device != "cpu":
        yield AtHand(
            "differs", "processor", f"it computed on {device}: GPUs don't always sum in the same order"
        )
        return
    model, capability = (
        _mapping(then.get("cpu")).get("model"),
        _mapping(then.get("torch")).get("cpu_capability"),
    )
    now = (here["cpu"]["model"], torch.backends.cpu.get_cpu_capability())
    if model is None or capability is None:
        yield AtHand("unknown", "processor", f"its kind isn't on record; here it is {now[0]} ({now[1]})")
    elif (model, capability) != now:
        yield AtHand("differs", "processor", f"it was {model} ({capability}), here it is {now[0]} ({now[1]})")
    else:
        yield AtHand("same", "processor", f"{now[0]} ({now[1]})")


def _workers(rebuilt: Rebuilt) -> Iterator[AtHand]:
    job, run, changed = rebuilt.job, rebuilt.run, rebuilt.lineage.changed
    for name, values in changed.items():
        told = f"{name} wasn't the same at every start of the run ({', '.join(values)})"
        yield AtHand("differs", "history", f"{told}: one start here can't be equal to all of them")
    if run.world_size is None:
        yield AtHand("unknown", "workers", "how many there were isn't on record")
    elif job.launch.num_workers != run.world_size:
        yield AtHand(
            "differs",
            "workers",
            f"there were {run.world_size}, which sum gradients in another order than {job.launch.num_workers}",
        )
    else:
        threads = run.environment.get("threads", "an unknown number of")
        yield AtHand("same", "workers", f"{run.world_size}, each with {counted(threads, 'thread')}")
    if job.engine.precision != "fp32":
        yield AtHand(
            "differs", "precision", f"{job.engine.precision}: only fp32 on CPUs is sure to give the same bits"
        )
    if job.engine.compile:
        yield AtHand("differs", "precision", "the model is compiled: the compiler may choose other kernels")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
