"""Commands on models: models; predict, what a model says of images, as text, JSON and label maps; compare."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convmlp_platform.cli.common import fail, positive, share
from convmlp_platform.errors import ConfigError, DataError, PlatformError

if TYPE_CHECKING:
    from convmlp_platform.models.prediction import Detections, Prediction


def add_model_list(commands: Any) -> None:
    """Add `models` to the parser's commands."""
    models = commands.add_parser("models", help="list the models that model.name may name")
    models.add_argument("pattern", nargs="?", metavar="PATTERN", help="e.g. 'resnet*': timm's models, too")
    models.set_defaults(call=_models)


def _models(arguments: argparse.Namespace) -> int:
    import timm

    import convmlp

    names = convmlp.list_models() if arguments.pattern is None else timm.list_models(arguments.pattern)
    if not names:
        return fail(
            f"no model's name matches {arguments.pattern!r}; try '*{arguments.pattern.strip('*')}*'", 2
        )
    print("\n".join(names))
    return 0


_LABELS_SHOWN = 3


def add_predict(commands: Any) -> None:
    """Add `predict` to the parser's commands."""
    parser = commands.add_parser(
        "predict",
        help="classes, objects or segmentation of images",
        description="What a model says of images, by its task: classes with probabilities; objects with boxes in "
        "the images' own pixels, and masks; or a class for each pixel.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL_URI",
        help="e.g. models:/convmlp-digits@champion, or runs/NAME: its best model",
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--top-k",
        type=positive,
        metavar="N",
        help=f"classes to show (default: {_LABELS_SHOWN}; of segmentation all)",
    )
    parser.add_argument(
        "--min-score",
        type=share,
        default=0.5,
        metavar="SCORE",
        help="objects of a lower score are left out (default: 0.5; models find none below 0.05)",
    )
    parser.add_argument("--json", action="store_true", help="for programs; objects as in COCO's results")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="of segmentation: write label maps there, IMAGE.png; a pixel is its class's number, from 0",
    )
    parser.set_defaults(call=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from convmlp_platform.models.prediction import Detections

    targets = None if arguments.out is None else _targets(arguments.out, arguments.images)
    predictions = [
        one.above(arguments.min_score) if isinstance(one, Detections) else one
        for one in predict(arguments.model, arguments.images)
    ]
    if targets is not None:
        _write(targets, predictions)
    pairs = list(zip(arguments.images, predictions, strict=True))
    if arguments.json:
        print(json.dumps([_row(image, one, arguments.top_k) for image, one in pairs], indent=2))
        return 0
    for image, one in pairs:
        print(f"{image}: " + _text(one, arguments.top_k, arguments.min_score))
    return 0


def predict(model: str, images: Sequence[Path]) -> Sequence[Prediction]:
    """Returns a model's predictions for image files, by its task.

    Args:
        model: a registered model, a bundle's folder, or a run's folder for its best model (`find_model`).

    Raises:
        ConfigError: no such model, or only weights.
        DataError: an image is missing or unreadable; the message names it.
    """
    for image in images:  # before seconds go into loading a model
        if not image.is_file():
            raise DataError(f"{image}: no such image file")
    import tempfile

    from convmlp_platform.models.predictors.predictor import Predictor
    from convmlp_platform.runs.find_model import find_model

    with tempfile.TemporaryDirectory(prefix="convmlp-model-") as folder:
        found = find_model(model, into=Path(folder))
        if found.spec is None:
            raise ConfigError(
                f"{model}: only weights are there (a {found.kind}), neither class names nor how images are prepared: "
                "name a registered model (models:/NAME@ALIAS), or a run that has evaluated its model"
            )
        predictor = Predictor.from_folder(Path(found.location))
    return predictor.predict(images)


def _row(image: Path, prediction: Prediction, top_k: int | None) -> dict[str, Any]:
    from convmlp_platform.models.prediction import Detections, Labels

    if isinstance(prediction, Labels):
        ranked = prediction.top(top_k or _LABELS_SHOWN)
        return {"image": str(image), "labels": [{"name": k, "probability": p} for k, p in ranked]}
    height, width = prediction.size
    row: dict[str, Any] = {"image": str(image), "height": height, "width": width}
    if isinstance(prediction, Detections):
        return row | {"objects": prediction.as_coco()}
    return row | {"shares": dict(list(prediction.shares().items())[:top_k])}


def _text(prediction: Prediction, top_k: int | None, min_score: float) -> str:
    from convmlp_platform.models.prediction import Detections, Labels

    if isinstance(prediction, Labels):
        return _percent(prediction.top(top_k or _LABELS_SHOWN))
    if isinstance(prediction, Detections):
        return _objects(prediction, min_score)
    return _percent(list(prediction.shares().items())[:top_k])


def _percent(named: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in named)


def _objects(found: Detections, min_score: float) -> str:
    """How many, and a line for each: class, score, box."""
    if not len(found):
        return f"no object with a score of {min_score:g} or more"
    width = max(len(name) for name in found.names)
    lines = [f"{len(found)} object{'s' if len(found) > 1 else ''} (left, top, right, bottom in pixels)"]
    for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True):
        lines.append(f"  {name:{width}}  {score:.2f}  " + " ".join(f"{side:7.1f}" for side in box))
    return "\n".join(lines)


def _targets(folder: Path, images: Sequence[Path]) -> list[Path]:
    """Returns the path that each image's label map is written to.

    Raises:
        ConfigError: two label maps would go to one file, or one would go over an image.
    """
    targets = [folder / f"{image.stem}.png" for image in images]
    for place, target in enumerate(targets):
        if target in targets[:place]:
            raise ConfigError(
                f"--out: {images[targets.index(target)]} and {images[place]} would both be written to {target}: "
                "give them to two commands with folders of their own"
            )
        if any(target.resolve() == image.resolve() for image in images):
            raise ConfigError(f"--out: {target} is one of the images: name another folder")
    return targets


def _write(targets: Sequence[Path], predictions: Sequence[Prediction]) -> None:
    from convmlp_platform.models.prediction import LabelMap
    from data_prep.storage.files import write_atomically

    maps = [one for one in predictions if isinstance(one, LabelMap)]
    if len(maps) < len(predictions):
        raise ConfigError("--out is for segmentation: this model makes no label maps")
    for target, one in zip(targets, maps, strict=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, one.as_png())
        except OSError as error:
            raise ConfigError(f"--out: {target} can't be written: {error}") from error


def add_compare(commands: Any) -> None:
    """Add `compare` to the parser's commands."""
    parser = commands.add_parser(
        "compare",
        help="models side by side: accuracy, parameters, MACs, speed",
        description="All figures are those on record; parameters and MACs that no record has are counted by making "
        "the network again, and marked *. Of a training run the best evaluation counts, and `last` is its last.",
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="RUN",
        help="a run's, sweep's or evaluation's name or folder, an MLflow run's id, models:/NAME@ALIAS, or a bundle's "
        "folder",
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="to sort by, e.g. top5, loss; default: the first one's task's"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw it over parameters and MACs (.png, .svg, .pdf)"
    )
    parser.set_defaults(call=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from convmlp_platform.evaluation.compare.compare_table import about, label_of, plot, rows, text_table
    from convmlp_platform.evaluation.compare.compared import metric_name
    from convmlp_platform.evaluation.compare.find_compared import COUNTED, find_compared, ordered, warnings_of

    metric = metric_name(arguments.metric) if arguments.metric else None
    lines, problems = [], []
    for text in arguments.what:
        try:
            lines += find_compared(text, metric)
        except PlatformError as error:
            problems.append(str(error))
    if problems:
        return fail("\n".join(problems), ConfigError.exit_code)
    metric, lines = ordered(lines, metric)
    warnings = warnings_of(lines, metric)
    if arguments.plot is not None:
        try:
            drawn = plot(
                lines, metric, arguments.plot, title=f"{label_of(metric)} and cost", subtitle=about(lines)
            )
        except (OSError, ValueError) as error:
            return fail(f"--plot {arguments.plot}: {error}", ConfigError.exit_code)
        if drawn is None:
            warnings.append(
                f"--plot {arguments.plot}: no line has both {metric} and a cost: nothing is drawn"
            )
    if arguments.json:
        values = {"metric": metric, "warnings": warnings, "models": [line.to_dict() for line in lines]}
        print(json.dumps(values, indent=2))
        return 0
    print("\n".join(text_table(rows(lines, metric))))
    if any(line.counted for line in lines):
        print(COUNTED)
    for warning in warnings:
        print(f"warning: {warning}")
    return 0
