"""Read JSON values back as the dataclasses that wrote them; entries and types must match."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


def from_json(kind: type[T], value: object, where: str) -> T:
    """``value`` as dataclass ``kind``; null for a float becomes NaN.

    A field whose metadata say ``optional`` may be missing, and is None then.

    Raises:
        ValueError: an entry is missing that is not optional, or one is unknown or of another
            type; ``where`` begins the message.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    absent = {field.name for field in fields if field.metadata.get("optional")} - value.keys()
    value = {**dict.fromkeys(absent), **value}
    if value.keys() != names:
        wrong = sorted(map(str, value.keys() ^ names))[0]
        raise ValueError(f"{where} lacks {wrong}" if wrong in names else f"{where} has {wrong!r}")
    return kind(**{name: _value(hints[name], value[name], f"{where}.{name}") for name in names})


def _value(hint: Any, value: object, where: str) -> Any:  # noqa: PLR0911
    origin, members = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in {Union, types.UnionType}:
        kinds = [member for member in members if member is not type(None)]
        return None if value is None else _value(kinds[0], value, where)
    if origin is Literal:
        return _checked(value, any(type(m) is type(value) and m == value for m in members), where)
    if origin is tuple:
        return _sequence(members, value, where)
    if origin is dict:
        entries = _checked(value, isinstance(value, dict), where)
        return {key: _value(members[1], entry, f"{where}.{key}") for key, entry in entries.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, where)
    if hint is float:
        if value is None:
            return float("nan")
        return _checked(value, type(value) in {int, float}, where)
    return _checked(value, type(value) is hint, where)


def _sequence(members: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    items: list[object] = _checked(value, isinstance(value, list), where)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(items)
    _checked(value, len(items) == len(members), where)
    return tuple(
        _value(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(members, items, strict=True))
    )


def _checked(value: Any, holds: bool, where: str) -> Any:
    if not holds:
        raise ValueError(f"{where} is of another type: {value!r:.60}")
    return value
