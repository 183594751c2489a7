"""The schema seen as dotted names: which names are valid where, and what each one is."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
