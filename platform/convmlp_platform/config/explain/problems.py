"""Problems of a job file, in the user's words: a line for each problem, with its dotted name.

The schema seen as dotted names: which names are valid where, and what each one is.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from convmlp_platform.config.explain.suggest import nearest, nearest_field

Model = type[BaseModel]


def sections_of(annotation: Any) -> list[Model]:
    """The section classes a value of this type may be (several: told apart by their `kind`)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return sections_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for option in get_args(annotation) for model in sections_of(option)]
    return []


def child_sections(models: list[Model], key: str) -> list[Model]:
    """The section classes below `key` of any of `models`."""
    found = [sections_of(model.model_fields[key].annotation) for model in models if key in model.model_fields]
    return [model for section in found for model in section]


def dotted_names(models: list[Model], prefix: str = "") -> Iterator[str]:
    """Every field without fields of its own, each once, in the schema's order."""
    seen: set[str] = set()
    for model in models:
        for name in model.model_fields:
            children = child_sections([model], name)
            for dotted in dotted_names(children, f"{prefix}{name}.") if children else [prefix + name]:
                if dotted not in seen:
                    seen.add(dotted)
                    yield dotted


def kind_of(model: Model) -> str | None:
    """The value of `kind` that selects this class, where there is a choice."""
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return values[0] if len(values) == 1 else None


def select_kind(models: list[Model], kind: Any) -> list[Model]:
    """The classes of that kind; all of them where none is, or where `kind` doesn't matter."""
    return [model for model in models if kind_of(model) == kind] or models


def choices(annotation: Any) -> list[str]:
    """Returns the words that may be written for a type that is a choice of words and switches, else an empty list."""
    if get_origin(annotation) is Annotated:
        return choices(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) in (Union, types.UnionType):
        options = [choices(option) for option in get_args(annotation) if option is not type(None)]
        return [word for words in options for word in words] if all(options) else []
    return []


def field_at(models: list[Model], path: list[str]) -> FieldInfo | None:
    """The field a dotted path leads to, where it is one."""
    for key in path[:-1]:
        models = child_sections(models, key)
    return next(
        (model.model_fields[path[-1]] for model in models if path and path[-1] in model.model_fields), None
    )


_KINDS_OF_VALUE = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping (name: value)",
    "model": "a section (name: value lines)",
    "path": "a path",
}
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


_MAX_LINES = 100


class Explainer:
    """Turns pydantic's errors about `values`, a job of class `model`, into lines for people."""

    def __init__(self, model: Model, values: dict[str, Any], origins: Mapping[str, str]) -> None:
        self.model, self.values, self.origins = model, values, origins

    def lines(self, error: ValidationError) -> list[str]:
        """One line a problem; several errors about one field (the members of a union) are one problem."""
        lines: dict[str, None] = {}
        explained: set[str] = set()
        details = error.errors(include_url=False)
        for number, detail in enumerate(details):
            if len(lines) == _MAX_LINES:  # the nearest name of each takes milliseconds
                lines[f"and {len(details) - number:,} more problems"] = None
                break
            path, models = self._locate(detail)
            name = ".".join(path)
            if detail["type"] == "value_error":
                lines.update(dict.fromkeys(self._own_messages(name, self._sections(path), detail)))
            elif name not in explained:
                explained.add(name)
                lines[self._line(name, path, models, detail)] = None
        return list(lines)

    def _locate(self, detail: ErrorDetails) -> tuple[list[str], list[Model]]:
        """The dotted path of an error, without pydantic's tags of unions, and the classes of its end."""
        models: list[Model] = [self.model]
        holder, path, value = models, list[str](), cast(Any, self.values)
        for part in detail["loc"]:
            if isinstance(value, dict):
                tags = [kind_of(model) for model in models]
                if path and part not in value and part in tags and len(models) > 1:
                    models = select_kind(models, part)
                    continue
                known = any(part in model.model_fields for model in models)
                if not (known or part in value):
                    break
                holder, models, value = models, child_sections(models, str(part)), value.get(str(part))
            elif isinstance(value, list) and isinstance(part, int):
                value = value[part] if part < len(value) else None
            else:
                break
            path.append(str(part))
        return path, holder

    def _own_messages(self, name: str, models: list[Model], detail: ErrorDetails) -> list[str]:
        """Of the schema's own validators, whose text is for people already: only names are made dotted."""
        lines = []
        for text in str(detail.get("ctx", {}).get("error", detail["msg"])).splitlines():
            first, _, rest = text.partition(" ")
            if name and first == name.rpartition(".")[2]:
                lines.append(f"{name} {rest}")
            elif any(first in model.model_fields for model in models):
                lines.append(f"{name}.{text}")
            else:
                lines.append(f"{name}: {text}" if name else text)
        return lines

    def _line(self, name: str, path: list[str], holders: list[Model], detail: ErrorDetails) -> str:
        source = self._origin(name)
        field = field_at([self.model], path)
        match detail["type"]:
            case "extra_forbidden":
                return f"{name}: unknown key{source and f' ({source})'}; {self._meant(path, holders)}"
            case "union_tag_not_found":
                return f"{name}.kind: required, but missing; one of {_listed(self._kinds(path))}"
            case "union_tag_invalid":
                given, kinds = detail["input"].get("kind"), self._kinds(path)
                return f"{name}.kind: must be {_listed(kinds)} (got {_shown(given, source)})" + _did_you_mean(
                    given, kinds
                )
            case "missing" if field is None:
                size = max(int(detail["loc"][-1]) + 1, 2)
                return (
                    f"{name.rpartition('.')[0]}: must be a list of {size} values{source and f' ({source})'}"
                )
            case "missing":
                return f"{name}: required, but missing{self._what(path)}"
        given, words = detail["input"], choices(field.annotation) if field else []
        if detail["type"] == "literal_error":
            words = words or re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        if words:
            return f"{name}: must be {_listed(words)} (got {_shown(given, source)})" + _did_you_mean(
                given, words
            )
        return f"{name}: must be {_rule(detail)} (got {_shown(given, source)})" + _type_hint(detail, field)

    def _meant(self, path: list[str], holders: list[Model]) -> str:
        siblings = list(dict.fromkeys(name for model in holders for name in model.model_fields))
        section = ".".join(path[:-1])
        if meant := nearest_field(path[-1], section, siblings, dotted_names([self.model])):
            return f"did you mean {meant}?"
        return f"{section or 'a job'} has {', '.join(siblings)}"

    def _what(self, path: list[str]) -> str:
        """Returns what belongs into a missing field: its description, or the required fields of a section."""
        field, sections = field_at([self.model], path), self._sections(path)
        if len(sections) == 1:
            needed = [
                f"{'.'.join(path)}.{key}"
                for key, item in sections[0].model_fields.items()
                if item.is_required()
            ]
            return f" (it needs {_listed(needed, 'and')})" if needed else ""
        return f" ({field.description})" if field and field.description else ""

    def _sections(self, path: list[str]) -> list[Model]:
        models = [self.model]
        for key in path:
            models = child_sections(models, key)
        return models

    def _kinds(self, path: list[str]) -> list[str]:
        return [kind for kind in map(kind_of, self._sections(path)) if kind]

    def _origin(self, name: str) -> str:
        """Returns where a value is from that doesn't stand in the job file itself."""
        found = (
            origin
            for given, origin in reversed(list(self.origins.items()))
            if name == given or name.startswith(f"{given}.") or given.startswith(f"{name}.")
        )
        return next(found, "")


def _rule(detail: ErrorDetails) -> str:
    """Returns the requirement on the value, in words that follow "must be"."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _LIMITS:
        phrase, key = _LIMITS[kind]
        return f"{phrase} {context[key]:g}"
    if kind == "string_pattern_mismatch":
        return _pattern_in_words(str(context["pattern"]))
    if kind == "string_too_long":
        return f"at most {context['max_length']} characters long"
    if kind in ("too_short", "too_long"):
        limit, key = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"a list of {limit} {context[key]} values"
    known = (phrase for prefix, phrase in _KINDS_OF_VALUE.items() if kind.startswith(prefix))
    return next(known, f"valid: {detail['msg'][:1].lower()}{detail['msg'][1:]}")


def _pattern_in_words(pattern: str) -> str:
    if pattern.startswith("^sha256"):
        return "sha256: and 64 hexadecimal digits, as in the dataset's manifest.json"
    if pattern.startswith("^[A-Za-z0-9][A-Za-z0-9"):
        marks = "any of . _ -" if "." in pattern else "_ or -"
        return f"letters, digits and {marks}, beginning with a letter or digit"
    if ":" in pattern:
        return "package.module:Class"
    return f"text that matches {pattern}"


def _type_hint(detail: ErrorDetails, field: FieldInfo | None) -> str:
    """After a value of the wrong type: how to write it, or what the field is for."""
    given = detail["input"]
    if detail["type"] == "string_type" and isinstance(given, int | float):
        return f"; write it in quotes: '{str(given).lower()}'"
    wrong_type = detail["type"].endswith(("_type", "_parsing", "_from_float"))
    return f"; it is: {field.description}" if wrong_type and field and field.description else ""


def _shown(value: Any, source: str) -> str:
    text = "nothing" if value is None else repr(value) if isinstance(value, str) else json.dumps(value)
    return (text if len(text) <= 80 else f"{text[:77]}...") + (f", {source}" if source else "")


def _listed(words: list[str], last: str = "or") -> str:
    unique = list(dict.fromkeys(words))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} {last} {unique[-1]}"


def _did_you_mean(given: Any, words: list[str]) -> str:
    near = nearest(given.lower(), words) if isinstance(given, str) else None
    return f"; did you mean {near}?" if near else ""
