"""Write recipes/default.yaml and docs/recipe.md from the settings of the recipe.

    python docs/recipe_files.py [--out FOLDER]

``make docs`` runs it for the checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from compatctl.recipe import Backbone, InputSpec, Recipe
from compatctl.recipe._typed import to_plain, yaml_key

WIDTH = 98
ROOT = Path(__file__).resolve().parent.parent

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
"""All defaults, and an example of a backbone."""

_HEADER = """\
# The default recipe: every setting with its default value. Only where --base is a checkpoint is
# backbone required; the one below is an example.
#
#     compatctl finetune --base new.ckpt
#
# YAML reads 1e-3 as text; write 0.001.
"""

_PAGE = """\
# The recipe

For whoever trains a candidate: each setting of a recipe, its default, and a recipe for each
situation.

A recipe is a YAML file that decides what `compatctl finetune` computes. Where `--base` is a
checkpoint, `backbone` is required, and nothing else; where it is an encoder (an ONNX file), a head
behind it is trained, and no recipe is needed. `compatctl finetune --print-recipe` prints a recipe
with every setting and its default: [`recipes/default.yaml`](../recipes/default.yaml).

Beside it is one recipe for each situation. Its first lines say what it is for, what you get, and
when not to use it. Copy one and name your backbone.

| recipe | situation |
|---|---|
{situations}

The settings:

| setting | default | values | what it does |
|---|---|---|---|
"""


def main() -> None:
    """Write both files, below the checkout or below another folder."""
    parser = argparse.ArgumentParser(description="Write recipes/default.yaml and docs/recipe.md.")
    parser.add_argument("--out", type=Path, default=ROOT)
    out: Path = parser.parse_args().out
    for name, head, lines in (
        ("recipes/default.yaml", _HEADER, _lines(EXAMPLE, 0)),
        ("docs/recipe.md", _PAGE.format(situations=_situations()), _rows(Recipe, "")),
    ):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


def _situations() -> str:
    """A row of the table for each recipe beside the default one: its first paragraph."""
    rows = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        if path.stem != "default":
            head = path.read_text(encoding="utf-8").split("\n#\n", maxsplit=1)[0]
            text = " ".join(line.removeprefix("#").strip() for line in head.splitlines())
            rows.append(f"| [`recipes/{path.name}`](../recipes/{path.name}) | {text} |")
    return "\n".join(rows)


def _lines(spec: Any, depth: int) -> Iterator[str]:
    """A dataclass as YAML: for each setting its sentence, its choices, and its value."""
    indent = "  " * depth
    for key, field, hint in _settings(type(spec)):
        value = getattr(spec, field.name)
        if not depth:
            yield ""
        for line in _comment(_sentence(field, hint), hint, WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if dataclasses.is_dataclass(value):
            yield f"{indent}{key}:"
            yield from _lines(value, depth + 1)
        else:
            yield f"{indent}{key}: {_flow(value)}"


def _rows(kind: type[Any], prefix: str) -> Iterator[str]:
    """A row of the table for each setting, nested ones under dotted names."""
    for key, field, hint in _settings(kind):
        nested = _dataclass_in(hint)
        sentence = _cell(_sentence(field, hint))
        yield f"| `{prefix}{key}` | {_default(field)} | {_values(field, hint)} | {sentence} |"
        if nested is not None:
            yield from _rows(nested, f"{prefix}{key}.")


def _settings(kind: type[Any]) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Key, field and type of each setting of a dataclass."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if key := yaml_key(field):
            yield key, field, hints[field.name]


def _sentence(field: dataclasses.Field[Any], hint: Any) -> str:
    """What the setting does: its sentence, or the docstring of the dataclass that it is."""
    nested = _dataclass_in(hint)
    text = " ".join((nested.__doc__ or "").split()) if nested else field.metadata["sentence"]
    return str(text)


def _comment(sentence: str, hint: Any, width: int) -> Iterator[str]:
    """The sentence in lines, then the choices unless its indented lines list them."""
    for paragraph in sentence.split("\n"):
        yield from [paragraph] if paragraph.startswith(" ") else textwrap.wrap(paragraph, width)
    choices = _choices(hint)
    if len(choices) > 1 and "\n" not in sentence:
        yield f"One of: {', '.join(map(str, choices))}."


def _cell(sentence: str) -> str:
    """The sentence on one line; its lines of choices are separated by semicolons."""
    first, *choices = sentence.split("\n")
    entries: list[str] = []
    for line in choices:
        name, _, meaning = line.strip().partition("  ")
        if meaning:
            entries.append(f"`{name}`, {meaning.strip()}")
        else:
            entries[-1] += f" {name}"
    return f"{first} {'; '.join(entries)}".strip()


def _default(field: dataclasses.Field[Any]) -> str:
    """The default in backquotes; empty for a mapping of settings, and where there is none."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING or dataclasses.is_dataclass(default):
        return ""
    return f"`{_flow(default)}`"


def _flow(value: Any) -> str:
    """A value as YAML on one line; a list of one as its element."""
    value = to_plain(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 16, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _values(field: dataclasses.Field[Any], hint: Any) -> str:
    """The values that a setting may have: its choices, or the range of a number."""
    if choices := _choices(hint):
        return ", ".join(f"`{choice}`" for choice in choices)
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if low is None and high is None:
        return ""
    return f"at least {low}" if high is None else f"{low} to {high}"


def _choices(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    if get_origin(hint) in {typing.Union, types.UnionType} and type(None) in get_args(hint):
        choices = [choice for kind in get_args(hint) for choice in _choices(kind)]
        return (*choices, "null") if choices else ()
    return get_args(hint) if get_origin(hint) is Literal else ()


def _dataclass_in(hint: Any) -> type[Any] | None:
    """The dataclass that a type is, or that it allows beside None."""
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


if __name__ == "__main__":
    main()
