"""YAML as people mean it: `1e-5` is a number, a key given twice is an error, and nothing is ever executed."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from convmlp_platform.errors import ConfigError

# YAML 1.2's core numbers with YAML 1.1's words for booleans. PyYAML's own rules read 1e-5 as text, 1:30 as
# ninety and 2026-11-21 as a date.
_SCALARS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:bool", r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)", "yYnNoO"),
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
]  # fmt: skip


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Mark] = {}
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    first = seen[key.value].line + 1
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} is given twice (first on line {first})",
                        problem_mark=key.start_mark,
                    )
                seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what `_Loader` would otherwise read as something else than text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _tag, re.compile(rf"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first]
        )


def parse(text: str, where: str) -> Any:
    """The value of a YAML document; `where` (a file or option) begins the error message.

    Raises:
        ConfigError: not YAML, or a key given twice; with the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and not where.startswith("--set") else ""
        hint = _hint(error.problem or "")
        raise ConfigError(f"{where}{line}: {error.problem or error.context}{hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None


def _hint(problem: str) -> str:
    if "'\\t'" in problem:
        return " (YAML is indented with spaces, never tabs)"
    if "mapping values are not allowed" in problem:
        return " (a colon inside a text needs quotes; or the indentation is off)"
    if "could not determine a constructor" in problem:
        return " (only plain YAML: no !tags)"
    return ""


def dump(value: Any) -> str:
    """`value` (dicts, lists, scalars) as YAML that `parse` reads back equal; short lists stay on one line."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, default_flow_style=False, width=100
    )
