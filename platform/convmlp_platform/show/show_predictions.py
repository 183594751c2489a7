"""A page with a trained model's predictions for a dataset's images, beside the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from convmlp.weight_files import Choice
from convmlp_platform.data.dataset.split import ShardedSplit, open_manifest
from convmlp_platform.errors import ConfigError
from convmlp_platform.models.bundle import BundleSpec, write_bundle
from convmlp_platform.models.predictors.predictor import Predictor
from convmlp_platform.pictures.predictions import (
    AreaPrediction,
    Prediction,
    is_wrong,
    pixel_accuracy,
    predictions_sheet,
)
from convmlp_platform.runs.find_model import find_model
from convmlp_platform.runs.found_model import FoundModel
from convmlp_platform.show.show_features import chosen_samples, save_picture, short_name
from convmlp_platform.training.build.bundle_spec import bundle_spec
from convmlp_platform.training.outputs.sample_pictures import COUNT, as_found, beside_truth
from data_prep.dataset.manifest import DatasetManifest

_AT_A_TIME = 16
_PER_SHOWN = {"classification": 100, "detection": 10, "segmentation": 10}
"""With `only_wrong`, so many images are looked at for each that is shown, at most."""


@dataclass(frozen=True)
class Drawn:
    """The picture that was written, and what was found."""

    path: Path
    shown: int
    looked_at: int
    wrong: int


def draw_predictions(
    model: str,
    dataset: str,
    path: Path,
    *,
    split: str = "val",
    count: int | None = None,
    seed: int = 0,
    only_wrong: bool = False,
    choice: Choice = "auto",
    say: Callable[[str], None] = lambda _line: None,
) -> Drawn:
    """A page of predictions, written as PNG.

    Args:
        model: anything `find_model` takes but a bare file of weights, which doesn't say what it is.
        dataset: folder of a prepared dataset with the model's classes.
        count: images; default 16, or 8 with boxes or masks.
        seed: draws which.
        only_wrong: wrongly classified ones; with objects missed or made up; of segmentation those with the largest
            share of wrong pixels.
        choice: of a checkpoint with two sets of weights, which.
        say: takes a line on which was taken.

    Raises:
        ConfigError: no such model, or it is not for this dataset.
        DataError: no such dataset or split, a damaged sample, or the picture can't be written.
    """
    manifest = open_manifest(dataset)
    found = find_model(model, choice=choice)
    with TemporaryDirectory(prefix="convmlp-model-") as folder:
        predictor = Predictor.from_folder(_bundle(found, manifest, Path(folder), say))
        _check_fits(model, predictor.spec, manifest)
        count = count or COUNT[manifest.task]
        limit = count * _PER_SHOWN[manifest.task] if only_wrong else count
        opened, samples = chosen_samples(dataset, split, limit, seed)
        everything = _predicted(predictor, opened, samples)
        chosen, looked_at = _choose(everything, count, only_wrong)
    wrong = sum(map(is_wrong, chosen))
    if not chosen:
        raise ConfigError(
            f"--only-wrong: {model} is right on all of the {looked_at:,} images of {opened.name} looked at"
        )
    words = f"{len(chosen)} of {len(opened):,} images · seed {seed}"
    if only_wrong:
        words = f"the first {len(chosen)} wrong ones of {looked_at:,} looked at · seed {seed}"
        if manifest.task == "segmentation":
            words = f"the worst {len(chosen)} of {looked_at:,} looked at · seed {seed}"
    title = f"{short_name(found)}: predictions on {opened.name}"
    save_picture(predictions_sheet(chosen, manifest.classes, title=title, subtitle=words), path)
    return Drawn(path, len(chosen), looked_at, wrong)


def _bundle(found: FoundModel, manifest: DatasetManifest, folder: Path, say: Callable[[str], None]) -> Path:
    """The model's bundle; one made of a checkpoint and its run's job goes into `folder`."""
    if found.spec is not None:
        return Path(found.location)
    if found.job is None:
        raise ConfigError(
            f"{found.text}: these weights don't say what they are for: give a run, a checkpoint in its run's folder, a "
            "model bundle, or a version in the registry"
        )
    weights = found.weights()
    if weights.choice is not None:
        say(f"{found.pinned}: {weights.choice}")
    write_bundle(folder, weights.tensors, bundle_spec(found.job, manifest, {}))
    return folder


def _check_fits(model: str, spec: BundleSpec, manifest: DatasetManifest) -> None:
    if spec.task.dataset != manifest.task:
        raise ConfigError(
            f"{model} is a model for {spec.task.dataset}, dataset {manifest.name} is for {manifest.task}: give a "
            f"dataset of {spec.task.dataset}"
        )
    if list(spec.classes) == manifest.classes:
        return
    if len(spec.classes) != manifest.num_classes:
        differ = f"the model has {len(spec.classes)} classes, the dataset {manifest.num_classes}"
    else:
        pairs = zip(spec.classes, manifest.classes, strict=True)
        number, own, other = next((at, *pair) for at, pair in enumerate(pairs) if pair[0] != pair[1])
        differ = f"class {number} of the model is {own!r}, of the dataset {other!r}"
    raise ConfigError(f"{model} was not trained on the classes of dataset {manifest.name}: {differ}")


def _predicted(predictor: Predictor, split: ShardedSplit, samples: Sequence[int]) -> Iterator[Prediction]:
    for start in range(0, len(samples), _AT_A_TIME):
        chosen = samples[start : start + _AT_A_TIME]
        answers = predictor.predict([split.image(sample)[0] for sample in chosen])
        for sample, answer in zip(chosen, answers, strict=True):
            yield beside_truth(split, sample, as_found(answer))


def _choose(everything: Iterator[Prediction], count: int, only_wrong: bool) -> tuple[list[Prediction], int]:
    """Returns the predictions to show, and the number of those that were looked at."""
    if not only_wrong:
        shown = list(islice(everything, count))
        return shown, len(shown)
    looked_at, wrong = 0, list[Prediction]()
    for one in everything:
        looked_at += 1
        if is_wrong(one):
            wrong.append(one)
        if isinstance(one, AreaPrediction):
            wrong = sorted(wrong, key=_accuracy)[:count]
        elif len(wrong) == count:
            break
    return wrong, looked_at


def _accuracy(one: Prediction) -> float:
    assert isinstance(one, AreaPrediction)
    return float(np.round(pixel_accuracy(one), 6))
