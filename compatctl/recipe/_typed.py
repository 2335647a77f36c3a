"""YAML read into frozen dataclasses: unknown keys and wrong types are refused.

YAML reads ``1e-3`` as text, ``0123`` as 83 and ``on`` as true, accepts a repeated key, and expands
twelve lines of aliases to gigabytes. So a scalar must have the declared type, a key must be
declared and unique, and anchors and aliases are refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from compatctl.errors import InputError
from compatctl.files.npz import open_regular

MAX_BYTES = 1 << 18
MAX_DEPTH = 20
MAX_DIGITS = 40
MAX_LISTED = 10
"""Most unknown keys in a message."""

T = TypeVar("T")


def between(low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    """Field metadata: the closed range of a number, or of every number of a list."""
    return {"low": low, "high": high, **more}


def setting(
    default: Any, sentence: str, low: float | None = None, high: float | None = None, **more: Any
) -> Any:
    """A dataclass field: its default, the sentence for YAML comment and docs, its closed range."""
    return dataclasses.field(
        default=default, metadata=between(low, high, sentence=sentence, **more)
    )


def load_yaml(path: Path, *, newest: int) -> Any:
    """The value of a YAML file: mappings, lists, text, numbers, booleans and None.

    Raises ``InputError`` for a file that cannot be read, is over 256 KiB, is not YAML, nests deeper
    than 20, repeats a key, has an alias or a tag, writes an integer with a leading zero, or has a
    ``format`` above ``newest``.
    """
    raw = read_bounded(path, MAX_BYTES)
    try:
        text = raw.decode("utf-8")
        _refuse_unsafe(path, text)
        value = yaml.load(text, Loader=_Strict)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and version > newest:
        raise InputError(
            f"{path}: format {version}; this version reads up to {newest}", tip="upgrade compatctl"
        )
    return value


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes.

    Raises:
        InputError: it is larger, missing, unreadable, or not a regular file.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if len(raw) > limit:
        raise InputError(f"{path}: larger than the limit of {limit} bytes")
    return raw


def build(kind: type[T], value: Any, where: str) -> T:
    """``value`` as dataclass ``kind``; ``where`` begins every message (a file name).

    ``kind.REMOVED`` maps settings of earlier versions to what to do; in a file they may be null.

    Raises ``InputError`` naming the key, what was expected and what was found.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a mapping of keys, got {_shown(value)}")
    hints = typing.get_type_hints(kind)
    fields = {yaml_key(f): f for f in dataclasses.fields(kind) if yaml_key(f)}  # type: ignore[arg-type]
    removed: Mapping[str, str] = getattr(kind, "REMOVED", {})
    for key in removed.keys() & value.keys():
        if value[key] is not None:
            raise InputError(f"{where}: {key} is a setting no longer", tip=removed[key])
    unknown = [str(key) for key in value if key not in fields and key not in removed]
    if unknown:
        raise InputError(
            f"{where}: unknown key {', '.join(sorted(unknown)[:MAX_LISTED])}",
            tip=f"{_meant(unknown[0], fields)}known keys here: {', '.join(fields)}",
        )
    arguments: dict[str, Any] = {}
    for key, field in fields.items():
        if key in value:
            arguments[field.name] = _convert(
                hints[field.name], value[key], f"{where}: {key}", dict(field.metadata)
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: key {key} is missing")
    return kind(**arguments)


def to_plain(value: Any) -> Any:
    """The JSON-serializable value that ``build`` reads back into an equal dataclass."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            yaml_key(f): to_plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if yaml_key(f)
        }
    if isinstance(value, tuple | list):
        return [to_plain(element) for element in value]
    if isinstance(value, dict):
        return {key: to_plain(element) for key, element in value.items()}
    return str(value) if isinstance(value, Path) else value


def yaml_key(field: dataclasses.Field[Any]) -> str:
    """The key of a field in the file; empty if the field is not part of the file."""
    return str(field.metadata.get("key", field.name))


def _convert(hint: Any, value: Any, where: str, meta: dict[str, Any]) -> Any:  # noqa: PLR0911
    origin = get_origin(hint)
    if origin in {Union, types.UnionType}:
        return _optional(hint, value, where, meta)
    if origin is Literal:
        return _choice(get_args(hint), value, where)
    if origin is tuple:
        return _sequence(get_args(hint), value, where, meta)
    if origin is dict:
        return _mapping(get_args(hint), value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, where)
    if hint is Path:
        return Path(_text(value, where))
    if hint is str:
        return _text(value, where)
    return _scalar(hint, value, where, meta)


def _optional(hint: Any, value: Any, where: str, meta: dict[str, Any]) -> Any:
    members = [member for member in get_args(hint) if member is not type(None)]
    if value is None and len(members) < len(get_args(hint)):
        return None
    return _convert(members[0], value, where, meta)


def _choice(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, bool) and True not in allowed:
        raise InputError(f"{where}: expected one of {_listed(allowed)}, got {value}", tip=_BOOLEAN)
    for choice in allowed:
        if type(choice) is type(value) and choice == value:
            return choice
    raise InputError(f"{where}: expected one of {_listed(allowed)}, got {_shown(value)}")


def _sequence(members: tuple[Any, ...], value: Any, where: str, meta: dict[str, Any]) -> Any:
    """A list; where the length is free, a scalar stands for a list of one."""
    open_ended = len(members) == 2 and members[1] is Ellipsis
    if open_ended and not isinstance(value, list):
        value = [value]
    if not isinstance(value, list):
        raise InputError(f"{where}: expected a list of {len(members)}, got {_shown(value)}")
    if not open_ended and len(value) != len(members):
        raise InputError(f"{where}: expected {len(members)} values, got {len(value)}")
    if open_ended and not value:
        raise InputError(f"{where}: the list is empty")
    if open_ended and len(set(map(repr, value))) < len(value):
        raise InputError(f"{where}: the list names a value twice")
    kinds = [members[0]] * len(value) if open_ended else list(members)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_convert(kind, member, f"{where}[{i}]", meta) for i, (kind, member) in pairs)


def _mapping(members: tuple[Any, ...], value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{where}: expected a mapping with text keys, got {_shown(value)}")
    if members[1:] == (str,):
        return {key: _text(entry, f"{where}: {key}") for key, entry in value.items()}
    return dict(value)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        raise InputError(f"{where}: expected text, got {value}", tip=_BOOLEAN)
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, got {_shown(value)}", tip="put it in quotes")
    if not value.strip() or "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InputError(f"{where}: expected text, got {value!r}")
    return value


def _scalar(hint: Any, value: Any, where: str, meta: dict[str, Any]) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise InputError(f"{where}: expected true or false, got {_shown(value)}")
    wanted = "an integer" if hint is int else "a number"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is int and isinstance(value, float):
        raise InputError(f"{where}: expected an integer, got {value!r}")
    if not whole and not isinstance(value, float):
        raise InputError(
            f"{where}: expected {wanted}, got {_shown(value)}", tip=_numeric_tip(value)
        )
    try:
        number = hint(value)
    except OverflowError:
        raise InputError(
            f"{where}: expected {wanted}, got one of {len(str(value))} digits"
        ) from None
    low, high = meta.get("low"), meta.get("high")
    inside = (low is None or number >= low) and (high is None or number <= high)
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"{where}: expected a finite number, got {number}")
    if not inside:
        limits = f"{'' if low is None else low} .. {'' if high is None else high}"
        raise InputError(f"{where}: expected {wanted} in {limits}, got {_shown(value)}")
    return number


_BOOLEAN = "YAML reads on, off, yes, no, true and false as booleans: put the word in quotes"


def _numeric_tip(value: Any) -> str:
    """YAML 1.1 needs a dot and a signed exponent: ``1e-3`` and ``1.0e3`` are text there."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        if not math.isfinite(number):
            return ""
        return f"YAML reads {value} as text: write it as {number:.12f}".rstrip("0").rstrip(".")
    return ""


def _shown(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing (null)"}
    if type(value) in names:
        return names[type(value)]
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _listed(allowed: tuple[Any, ...]) -> str:
    return ", ".join(map(str, allowed))


def _refuse_unsafe(path: Path, text: str) -> None:
    """Refuse aliases, anchors, tags and deep nesting before anything is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}: line {event.start_mark.line + 1 if event.start_mark else '?'}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(
                f"{where}: anchors and aliases (& and *) are refused", tip="write the value out"
            )
        if getattr(event, "tag", None):
            raise InputError(f"{where}: tags (!) are refused")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise InputError(f"{path}: nests deeper than {MAX_DEPTH}")


class _Strict(yaml.SafeLoader):
    """``SafeLoader`` that refuses repeated keys and integers that YAML reads as octal."""


def _strict_mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Hashable] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable) or key in seen:
            line = key_node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: key {key!r} is repeated or not plain")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _strict_int(loader: _Strict, node: yaml.ScalarNode) -> int:
    digits = node.value.lstrip("+-")
    if (len(digits) > 1 and digits[0] == "0") or ":" in digits or "_" in digits:
        line = node.start_mark.line + 1
        raise yaml.YAMLError(
            f"line {line}: {node.value} is not read as the number it looks like; write it plainly"
        )
    if len(digits) > MAX_DIGITS:
        raise yaml.YAMLError(f"a number of {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(loader.construct_yaml_int(node))


_Strict.add_constructor("tag:yaml.org,2002:map", _strict_mapping)
_Strict.add_constructor("tag:yaml.org,2002:int", _strict_int)


def _meant(unknown: str, known: Iterable[str]) -> str:
    """A question, if a known key is nearly the unknown one."""
    near = difflib.get_close_matches(unknown[:64], [*known], 1, 0.75)
    return f"did you mean {near[0]}? " if near else ""
