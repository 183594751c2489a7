"""YAML as people mean it: `1e-5` is a number, a key given twice is an error, and nothing is ever executed.

A document is read within limits, so that one made to harm (references that double at each line, brackets without end)
costs no more than a long job.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar, NoReturn

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


MAX_BYTES = 1 << 19
"""Of a document; jobs have 3 kB, and lists of keys (`keep`) are what may be long."""
_MAX_NODES = 50_000
"""Values and keys, each reference counted as what it refers to."""
_MAX_DEPTH = 32
_MAX_TEXT = 4096
_MAX_KEY = 256
_MAX_DIGITS = 40
_TAGS = ("null", "bool", "int", "float", "seq", "map", "str")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in _TAGS
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._nodes = 0
        self._sizes: dict[Any, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As the parent's, counting."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._sizes:
                _refuse("a value that refers to itself", mark)
            self._count(self._sizes[node], mark)
            return node
        before = self._nodes
        self._count(1, mark)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            _refuse(f"values nested deeper than {_MAX_DEPTH}", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[node] = self._nodes - before
        return node

    def _count(self, nodes: int, mark: yaml.Mark) -> None:
        self._nodes += nodes
        if self._nodes > _MAX_NODES:
            _refuse(f"more than {_MAX_NODES:,} values, references included", mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As the parent's; keys are text, each given once."""
        seen: dict[str, yaml.Mark] = {}
        for key, _ in getattr(node, "value", []):
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if len(key.value) > _MAX_KEY:
                    _refuse(f"a key of {len(key.value):,} characters; {_MAX_KEY} are allowed", key.start_mark)
                if key.value in seen:
                    first = seen[key.value].line + 1
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value!r} is given twice (first on line {first})",
                        problem_mark=key.start_mark,
                    )
                seen[key.value] = key.start_mark
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    _refuse("a key that is a list or a mapping", key.start_mark)
                if key.tag != "tag:yaml.org,2002:str":
                    _refuse(f"key {_short(key.value)} is no text: write it in quotes", key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        """As the parent's, within limits."""
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > _MAX_TEXT:
                _refuse(
                    f"a text of {len(node.value):,} characters; {_MAX_TEXT:,} are allowed", node.start_mark
                )
            if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
                _refuse("a text that holds a NUL character or half of a pair (\\ud800)", node.start_mark)
        return super().construct_scalar(node)

    def number(self, node: Any) -> int | float:
        """Returns the value that the parent makes of a number or switch; refuses what is none, or is too large."""
        kind = node.tag.rpartition(":")[2]
        text = node.value if isinstance(node, yaml.ScalarNode) else ""
        if len(text) > _MAX_DIGITS:
            _refuse(f"a number of {len(text):,} characters", node.start_mark)
        try:
            value: int | float = getattr(self, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError):
            _refuse(f"{_short(text)} is not a {kind}", node.start_mark)
        if isinstance(value, float) and math.isinf(value) and "inf" not in text.lower():
            _refuse(f"{text} is too large for a number", node.start_mark)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            _refuse(f"{text} is too large for a whole number, which has 64 bits", node.start_mark)
        return value


def _refuse(problem: str, mark: yaml.Mark) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


_NUMBERS = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool")]
_Loader.yaml_constructors |= dict.fromkeys(_NUMBERS, _Loader.number)


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
    """The value of a YAML document: mappings by text, lists, texts, numbers of 64 bits, switches and nulls.

    Args:
        text: of at most 512 KiB.
        where: a file or option; begins the error message.

    Raises:
        ConfigError: not YAML, a key given twice, or beyond a limit; with the line.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where.partition('=')[0]}: too large: more than {MAX_BYTES:,} characters")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and not where.startswith("--set") else ""
        where = where if len(where) <= 200 else f"{where[:197]}..."
        hint = _hint(error.problem or "")
        raise ConfigError(f"{where}{line}: {error.problem or error.context}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = "" if where.startswith("--set") else f":{text.count(chr(10), 0, error.position) + 1}"
        character = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigError(
            f"{where[:200]}{line}: not readable as YAML: the character U+{character:04X} has no place in a text"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
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
