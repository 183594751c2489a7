"""The command models."""

from __future__ import annotations

import argparse
from typing import Any

from convmlp_platform.cli.words import fail


def add_commands(commands: Any) -> None:
    """Add it to the parser's commands."""
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
