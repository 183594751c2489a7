"""Commands on models: models, predict."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from convmlp_platform.cli.words import fail, positive


def add_commands(commands: Any) -> None:
    """Add them to the parser's commands."""
    models = commands.add_parser("models", help="list the models that model.name may name")
    models.add_argument("pattern", nargs="?", metavar="PATTERN", help="e.g. 'resnet*': timm's models, too")
    models.set_defaults(call=_models)
    predict = commands.add_parser("predict", help="class names and probabilities for images")
    predict.add_argument("model", metavar="MODEL_URI", help="e.g. models:/convmlp-digits@champion")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument(
        "--top-k", type=positive, default=3, metavar="N", help="classes to show (default: 3)"
    )
    predict.add_argument("--json", action="store_true", help="for programs")
    predict.set_defaults(call=_predict)


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


def _predict(arguments: argparse.Namespace) -> int:
    from convmlp_platform.tracking.predict import predict

    predictions = predict(arguments.model, arguments.images, arguments.top_k)
    if arguments.json:
        rows = [
            {"image": str(one.image), "labels": [{"name": name, "probability": p} for name, p in one.labels]}
            for one in predictions
        ]
        print(json.dumps(rows, indent=2))
        return 0
    for one in predictions:
        print(f"{one.image}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in one.labels))
    return 0
