"""`--set a.b=c`: values given on the command line, laid over the job file's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convmlp_platform.config.explain import yaml_text
from convmlp_platform.errors import ConfigError

_MAX_DEPTH = 32
_MAX_SHOWN = 100
_FORM = "expected KEY=VALUE, e.g. --set optimizer.lr=1e-3"


def apply_overrides(
    values: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """`values` with each `a.b=c` set, later ones winning; missing sections are made; list items go by number.

    Returns the new values, the dotted names that were set with their origin for messages, "from --set", and one line
    per override that can't be.
    """
    result, problems = _copied(values), list[str]()
    origins: dict[str, str] = {}
    for override in overrides:
        try:
            origins[_apply(result, override)] = "from --set"
        except ConfigError as error:
            problems.append(str(error))
    return result, origins, problems


def _apply(values: dict[str, Any], override: str) -> str:
    name, equals, text = override.partition("=")
    name = name.strip()
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {override[:_MAX_SHOWN]}: {_FORM}")
    origin = f"--set {override if len(override) <= _MAX_SHOWN else f'{override[:_MAX_SHOWN]}...'}"
    put(values, name, yaml_text.parse(text, origin), origin)
    return name


def put(values: dict[str, Any], name: str, value: Any, origin: str) -> None:
    """Set what the dotted `name` leads to in `values`, which are changed; missing sections are made.

    Raises:
        ConfigError: beginning with `origin`, where the name leads through a value that has no such part.
    """
    holder: Any = values
    keys = name.split(".")
    if len(keys) > _MAX_DEPTH:
        raise ConfigError(f"{origin}: no name of a job has {len(keys):,} parts")
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth])
        if isinstance(holder, list):
            slot: Any = _list_index(holder, key, here, origin)
        elif isinstance(holder, dict):
            slot = key
        else:
            raise ConfigError(f"{origin}: {here} is the value {repr(holder)[:_MAX_SHOWN]} and has no fields")
        if depth == len(keys) - 1:
            holder[slot] = value
        else:
            if isinstance(holder, dict) and holder.get(slot) is None:
                holder[slot] = {}
            holder = holder[slot]


def _list_index(holder: list[Any], key: str, here: str, origin: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) < 10) or int(key) >= len(holder):
        raise ConfigError(
            f"{origin}: {here} is a list of {len(holder)}: give a number from 0 to {len(holder) - 1}"
        )
    return int(key)


def _copied(value: Any) -> Any:
    """A deep copy in which YAML's aliases have become separate values."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
