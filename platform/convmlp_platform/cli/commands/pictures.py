"""`convmlp pictures ...`: what models say of images, and what they make of them inside."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convmlp_platform.cli.commands.data import dataset_path
from convmlp_platform.cli.common import positive
from convmlp_platform.errors import ConfigError
from data_prep.console import say

_MODEL_HELP = "models:/NAME@ALIAS, models:/NAME/3, a run's folder, one of its checkpoints, or a model bundle"


def add_commands(commands: Any) -> None:
    """Add the group to the parser's commands."""
    group = commands.add_parser("pictures", help="predictions on images, and feature maps")
    pictures = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_predictions(pictures)
    _add_features(pictures)


def _add_predictions(pictures: Any) -> None:
    predictions = pictures.add_parser(
        "predictions",
        help="a model's predictions beside the truth",
        description="Draw what a model says of a dataset's images beside what is true: classes, boxes and masks, or "
        "segmentation with a map of its errors.",
    )
    predictions.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    predictions.add_argument("dataset", metavar="DATASET", help="a prepared dataset's name or folder")
    predictions.add_argument("--split", default="val", help="default: val")
    predictions.add_argument(
        "--count", type=positive, metavar="N", help="images (default: 16; with boxes or masks 8)"
    )
    predictions.add_argument("--seed", type=int, default=0, metavar="N", help="other images (default: 0)")
    predictions.add_argument(
        "--only-wrong",
        action="store_true",
        help="wrong classes; objects missed or made up; of segmentation the images with most errors",
    )
    _add_weights(predictions)
    predictions.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    predictions.set_defaults(call=_predictions)


def _add_features(pictures: Any) -> None:
    features = pictures.add_parser(
        "features",
        help="the feature maps of one or several models",
        description="Draw the maps that networks make of an image, stage by stage, models below one another, as in the "
        "ConvMLP paper.",
    )
    features.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"{_MODEL_HELP}; NAME=FILE for a file of released weights, e.g. convmlp_s=convmlp_s_imagenet.pth; or a "
        "network's name for fresh weights",
    )
    source = features.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--image", type=Path, action="append", metavar="FILE", help="may be given several times"
    )
    source.add_argument("--data", metavar="DATASET", help="images of a prepared dataset")
    features.add_argument("--split", default="val", help="of the dataset (default: val)")
    features.add_argument(
        "--count", type=positive, default=1, metavar="N", help="images of the dataset (default: 1)"
    )
    features.add_argument("--seed", type=int, default=0, metavar="N", help="other images (default: 0)")
    features.add_argument(
        "--show",
        choices=("components", "mean", "channels"),
        default="components",
        help="components: the first three principal components as colours (default); mean: the mean over channels; "
        "channels: the four that vary most",
    )
    features.add_argument(
        "--size",
        type=positive,
        metavar="PIXELS",
        help="of the square that models see (default: what they were trained with, else 224)",
    )
    _add_weights(features)
    features.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    features.set_defaults(call=_features)


def _add_weights(parser: Any) -> None:
    parser.add_argument(
        "--weights",
        choices=("auto", "ema", "raw"),
        default="auto",
        help="of a checkpoint or file with two sets: the moving average, or those that the optimizer moves (default: "
        "the average where there is one)",
    )


def _predictions(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out)
    from convmlp_platform.show.show_predictions import draw_predictions

    drawn = draw_predictions(
        arguments.model,
        dataset_path(arguments.dataset),
        arguments.out,
        split=arguments.split,
        count=arguments.count,
        seed=arguments.seed,
        only_wrong=arguments.only_wrong,
        choice=arguments.weights,
        say=say,
    )
    more = f", out of {drawn.looked_at:,} looked at" if drawn.looked_at > drawn.shown else ""
    print(f"{drawn.path}: {drawn.shown} images{more}, {drawn.wrong} of them with an error")
    return 0


def _features(arguments: argparse.Namespace) -> int:
    _check_out(arguments.out)
    from convmlp_platform.show.show_features import dataset_images, draw_features, image_files

    if arguments.data is None:
        images = image_files(arguments.image)
    else:
        path = dataset_path(arguments.data)
        images = dataset_images(path, arguments.split, arguments.count, arguments.seed)
    drawn = draw_features(
        arguments.models,
        images,
        arguments.out,
        how=arguments.show,
        size=arguments.size,
        choice=arguments.weights,
        say=say,
    )
    print(f"{drawn}: {len(arguments.models)} models, {len(images)} images")
    return 0


def _check_out(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--out: {path} must end with .png")
