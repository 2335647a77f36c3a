"""The default recipe as a YAML file and as a page of the docs, written from the settings."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from compatctl.recipe._recipe import Backbone, InputSpec, Recipe
from compatctl.recipe._typed import to_plain, yaml_key

WIDTH = 98

EXAMPLE = Recipe(
    backbone=Backbone(
        factory="efficientnet_lite_pytorch:EfficientNet.from_name",
        args={"model_name": "efficientnet-lite2"},
        method="extract_features",
        input=InputSpec(
            height=160, width=160, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)
        ),
    )
)
"""Every default, and a backbone as an example of what has none."""

_HEADER = """\
# The default recipe: every setting with its default value. Only backbone must be written; the one
# below is an example.
#
#     compatctl finetune --base new.ckpt
#
# YAML reads 1e-3 as text; write 0.001.
"""

_PAGE = """\
# The recipe

A recipe is a YAML file that decides what `compatctl finetune` computes. Only `backbone` must be
written. `compatctl finetune --print-recipe` prints a recipe with every setting and its default, the
same file as [`recipes/default.yaml`](../recipes/default.yaml).

| setting | default | values | what it does |
|---|---|---|---|
"""


def recipe_yaml() -> str:
    """The text of ``recipes/default.yaml``."""
    return _HEADER + "\n".join(_lines(EXAMPLE, 0)) + "\n"


def recipe_page() -> str:
    """The text of ``docs/recipe.md``."""
    return _PAGE + "\n".join(_rows(Recipe, "")) + "\n"


def _lines(spec: Any, depth: int) -> Iterator[str]:
    """A dataclass as YAML: for each setting its sentence, its choices, and its value."""
    hints = typing.get_type_hints(type(spec))
    indent = "  " * depth
    for field in _settings(type(spec)):
        value = getattr(spec, field.name)
        if not depth:
            yield ""
        for line in _sentence(field, hints[field.name], WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if dataclasses.is_dataclass(value):
            yield f"{indent}{yaml_key(field)}:"
            yield from _lines(value, depth + 1)
        else:
            yield f"{indent}{yaml_key(field)}: {_flow(value)}"


def _rows(kind: type[Any], prefix: str) -> Iterator[str]:
    """A line of the table for each setting, nested ones under dotted names."""
    hints = typing.get_type_hints(kind)
    for field in _settings(kind):
        name, hint = prefix + yaml_key(field), hints[field.name]
        inner = _dataclass_in(hint)
        default = _default(field)
        shown = "" if default is None else f"`{default}`"
        if inner is not None:
            shown = "`null`" if field.default is None else ""
        yield f"| `{name}` | {shown} | {_values(field, hint)} | {_cell(field)} |"
        if inner is not None:
            yield from _rows(inner, f"{name}.")


def _settings(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if yaml_key(field)]


def _sentence(field: dataclasses.Field[Any], hint: Any, width: int) -> Iterator[str]:
    """The sentence in lines; indented lines of it stay as they are."""
    for paragraph in field.metadata["sentence"].split("\n"):
        yield from [paragraph] if paragraph.startswith(" ") else textwrap.wrap(paragraph, width)
    choices = _choices(hint)
    if len(choices) > 1 and "\n" not in field.metadata["sentence"]:
        yield f"One of: {', '.join(map(str, choices))}."


def _default(field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        return _flow(to_plain(field.default))
    if field.default_factory is not dataclasses.MISSING:
        return _flow(to_plain(field.default_factory()))
    return None


def _flow(value: Any) -> str:
    """A value as YAML on one line; a list of one as its element."""
    value = to_plain(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 16, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _values(field: dataclasses.Field[Any], hint: Any) -> str:
    """What a setting may be: its choices, or the range of a number."""
    if choices := _choices(hint):
        return ", ".join(f"`{choice}`" for choice in choices)
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is None and high is None:
        return ""
    return f"at least {low}" if high is None else f"{low} to {high}"


def _cell(field: dataclasses.Field[Any]) -> str:
    """The sentence on one line; lines that list choices are separated by semicolons."""
    first, *choices = field.metadata["sentence"].split("\n")
    entries: list[str] = []
    for line in choices:
        name, _, meaning = line.strip().partition("  ")
        if meaning:
            entries.append(f"`{name}`, {meaning.strip()}")
        else:
            entries[-1] += f" {name}"
    return f"{first} {'; '.join(entries)}".strip()


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) is tuple:
        return _choices(get_args(hint)[0])
    return ()


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass that a hint names, or that it allows beside None."""
    kinds = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    return next(
        (kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None
    )
