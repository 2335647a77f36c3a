"""pyarrow: what Parquet and Arrow files have in common."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatctl.data._columns import MAPPED_NAMES, UNREAD, Fields, folded
from compatctl.errors import InputError, UsageError
from compatctl.libraries import require_library
from compatctl.notices import notice

if TYPE_CHECKING:
    import pyarrow as pa

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""A column that pandas adds, and that is no value of an item."""

METADATA_KEY = b"huggingface"
_IMAGE_NAMES = frozenset(("path", "image"))
"""Names, but for case and plural, of a column of encoded images that is no guess."""


def require_pyarrow(path: Path) -> None:
    """Refuse to go on without pyarrow.

    Raises:
        UsageError: it is not installed.
    """
    require_library("pyarrow", extra="parquet", subject=f"{path}: reading it", error=UsageError)


@contextlib.contextmanager
def arrow_errors(path: Path, form: str) -> Iterator[None]:
    """Errors of pyarrow in the block are InputErrors.

    Raises:
        InputError: the file is unreadable or damaged.
    """
    import pyarrow as pa

    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _line(error)}") from error
    except (pa.ArrowException, ValueError, IndexError, MemoryError) as error:
        message = f"{path}: not {form} that can be read: {_line(error)}"
        raise InputError(message, tip="write the file again, or fetch it again") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """How the columns of an Arrow schema are read.

    Attributes:
        scalars: the columns that become fields and slices.
        renamed: name of a column -> name of its field, where they differ.
        image: the column of encoded images, if there is one; with ``nested`` its bytes are the
            part ``bytes`` of it, and a file's path may be the part ``path``.
        classes: column -> names of its whole numbers, as Hugging Face's ClassLabel has them.
        source: what a message begins with.
    """

    source: str
    scalars: tuple[str, ...]
    renamed: Mapping[str, str]
    image: str | None
    nested: bool
    classes: Mapping[str, tuple[str, ...]]

    @property
    def leaf(self) -> str | None:
        """The column of the images' bytes, in Parquet's notation."""
        return f"{self.image}.bytes" if self.image is not None and self.nested else self.image

    def columns(self, batch: pa.RecordBatch) -> dict[str, list[object]]:
        """Name of a field or slice -> its values in a batch.

        Raises:
            InputError: a whole number has no class name.
        """
        columns = {}
        for name in self.scalars:
            target = self.renamed.get(name, name)
            if target != UNREAD:
                columns[target] = _values(batch.column(name))
                if name in self.classes:
                    columns[target] = self._class_names(name, columns[target])
        return columns

    def _class_names(self, column: str, numbers: Sequence[object]) -> list[object]:
        """The names of classes by their numbers; None for -1, which says that there is no class."""
        names = self.classes[column]
        named: list[object] = []
        for number in numbers:
            if number is None or number == -1:
                named.append(None)
            elif isinstance(number, int) and 0 <= number < len(names):
                named.append(names[number])
            else:
                raise InputError(
                    f"{self.source}: {number!r} in the column {column!r} is no class of the "
                    f"{len(names)} that its features name"
                )
        return named


def plan_of(
    schema: pa.Schema, fields: Fields, source: object, features: Mapping[str, Any] | None = None
) -> TablePlan:
    """How to read a schema, with the ``features`` that Hugging Face gives, or has in the schema.

    Columns that are no text, number, date or truth value are not read; of these there is a notice.

    Raises:
        InputError: a column is missing, or could be two fields; or there is more than one column of
            images and none has the name that is expected.
    """
    features = features_in(schema) if features is None else features
    names = [field.name for field in schema]
    _refuse_names(names, source)
    wants_text = "text" in fields.mapped and "path" not in fields.mapped
    images = [field.name for field in schema if _is_image(field.type) and not wants_text]
    image = _image_column(images, names, fields, source)
    fields = fields.for_names(names) if image is None else fields
    if image is not None and image != fields.column("path"):
        fields = replace(fields, mapped={**fields.mapped, "path": image})
    has_ids = "id" in fields.mapped or any(folded(name) == folded("id") for name in names)
    if not has_ids and features:
        fields = replace(fields, required=tuple(n for n in fields.required if n != "id"))
        result = "they change if rows are inserted; --column id=COLUMN names a column of ids"
        notice(
            "ids-from-rows", source, "data whose rows are counted, for want of ids", ["id"], result
        )
    renamed = fields.rename(names, source)
    scalars = [
        field.name
        for field in schema
        if _is_scalar(field.type) and not _PANDAS_INDEX.fullmatch(field.name)
    ]
    unread = [
        f"{field.name!r} ({field.type})"[:80]
        for field in schema
        if field.name not in scalars and field.name != image
    ]
    if unread:
        notice(
            "column-not-read", source, "columns that are no text and no number, or an index", unread
        )
    _refuse_unreadable(schema, renamed, scalars, image, source)
    return TablePlan(
        source=str(source),
        scalars=tuple(name for name in scalars if name != image),
        renamed=renamed,
        image=image,
        nested=image is not None and _is_struct(schema.field(image).type),
        classes=_classes(features),
    )


def _refuse_names(names: Sequence[str], source: object) -> None:
    """Refuse columns of one name, and one without a name."""
    doubled = [name for name in names if names.count(name) > 1]
    if doubled or "" in names:
        what = f"two columns of the name {doubled[0]!r}" if doubled else "a column without a name"
        raise InputError(f"{source}: {what}", tip="rename it, or leave it out")


def _refuse_unreadable(
    schema: pa.Schema,
    renamed: Mapping[str, str],
    scalars: Sequence[str],
    image: str | None,
    source: object,
) -> None:
    for field in schema:
        name = renamed.get(field.name, field.name)
        if name in MAPPED_NAMES and field.name not in {*scalars, image}:
            expected = "a file's path or the encoded image" if name == "path" else "text"
            raise InputError(
                f"{source}: the column {field.name!r} is {field.type}; {name} must be {expected}"
            )


def _image_column(
    images: Sequence[str], names: Sequence[str], fields: Fields, source: object
) -> str | None:
    """The column of encoded images; None if the column of paths is text."""
    named = fields.column("path")
    if named in names or "path" in fields.mapped:
        return named if named in images else None
    usual = [name for name in images if folded(name) in _IMAGE_NAMES]
    if len(usual) == 1:
        return usual[0]
    if len(images) > 1:
        raise InputError(
            f"{source}: {', '.join(map(repr, images))} are columns of images; an item has one",
            tip=f"--column path={images[0]} chooses the first",
        )
    if images and not any(folded(name) == "path" for name in names):
        what = "columns read as the images, by their type"
        notice("similar-column", source, what, [f"{images[0]!r} as path"])
        return images[0]
    return None


def features_in(schema: pa.Schema) -> Mapping[str, Any]:
    """The features that Hugging Face's datasets writes into a schema; empty without any."""
    try:
        content = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
        features = content.get("info", {}).get("features", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _classes(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Column -> names of its classes, of the features that are a ClassLabel."""
    classes = {}
    for column, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                classes[column] = tuple(names)
    return classes


def _values(column: pa.Array) -> list[object]:
    """The values as text, whole numbers, floats or truth values; None where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if isinstance(kind, pa.DictionaryType):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        column = pc.cast(column, pa.string())
    elif pa.types.is_floating(kind):
        column = pc.cast(column, pa.float64())
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.float64()), column)
    values: list[object] = column.to_pylist()
    return values


def _is_struct(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(
        kind.field(i).name == "bytes" for i in range(kind.num_fields)
    )


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of a type are bytes."""
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image(kind: pa.DataType) -> bool:
    return is_binary(kind) or _is_struct(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    tests = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_temporal,
        pa.types.is_decimal, pa.types.is_null,
    )  # fmt: skip
    return is_text(kind) or any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are texts."""
    import pyarrow as pa

    is_view = getattr(pa.types, "is_string_view", pa.types.is_string)  # pyarrow 15 has none
    tests = (pa.types.is_string, pa.types.is_large_string, is_view)
    return any(test(kind) for test in tests)
