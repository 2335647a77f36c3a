"""The columns of a table: named by the project, or known by an exact or almost equal name."""

from __future__ import annotations

import difflib
import re
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from compatctl.errors import InputError
from compatctl.notices import DataWarning, notice

_CLOSE = 0.8
"""difflib's ratio above which a name is taken for a misspelling."""

UNREAD = "\0"
"""The name of a column that is not read: its own name is mapped to another column."""

MAPPED_NAMES = ("id", "path", "text", "label", "split", "role")
"""Names of fields that a project may map to other columns."""

NAME_TIP = "--column NAME=COLUMN, or columns: in compatctl.yaml, says which column it is"

_SINGULAR = {"columns": "column", "keys": "key", "arrays": "array"}
_MAX_FOUND = 20
"""Most names of a message that lists those found."""

_MARKS = re.compile(r"[\W_]+")

_WORDS = {
    "role": frozenset(("query", "queries", "probe", "gallery")),
    "split": frozenset(
        (
            *("train", "training", "trn", "validation", "val", "valid", "dev"),
            *("test", "testing", "tst", "eval", "evaluation"),
        )
    ),
}
"""Column -> what its cells are, in any case."""


def folded(name: str) -> str:
    """A name without case, blanks, punctuation, invisible characters and the s of a plural."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return _MARKS.sub("", plain).removesuffix("s")


def check_mapping(columns: Mapping[str, str]) -> None:
    """Refuse a mapping (name of a field -> column) of unknown names, or of a column to two.

    Raises:
        InputError: there is one.
    """
    unknown = [name for name in columns if name not in MAPPED_NAMES]
    if unknown:
        raise InputError(
            f"columns: {', '.join(map(repr, unknown))} is no name of a field",
            tip=f"the names are {', '.join(MAPPED_NAMES)}; all other columns are slices",
        )
    twice = [column for column in columns.values() if [*columns.values()].count(column) > 1]
    if twice:
        raise InputError(
            f"columns: {twice[0]!r} is mapped to two names", tip="a column can be one of them"
        )


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of an item that a reader of data finds by the names of columns.

    Attributes:
        required: names of fields that every item has.
        optional: further known names; any other column is a slice.
        mapped: name -> column, as the project says.
        partial: an optional field may be missing though it is mapped.
        advice: what to do where a column is missing; by default it says the names, and how to map.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ("split", "role")
    mapped: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    advice: str | None = None

    @property
    def tip(self) -> str:
        """What to do where a column is missing."""
        if self.advice is not None:
            return self.advice
        names = f"{', '.join(self.required[:-1])} and {self.required[-1]}"
        return f"the columns are {names}, and optionally {', '.join(self.optional)}; {NAME_TIP}"

    @property
    def known(self) -> tuple[str, ...]:
        """The required and the optional names."""
        return (*self.required, *self.optional)

    def column(self, name: str) -> str:
        """The column of a field: the mapped one, or that of its name."""
        return self.mapped.get(name, name)

    def for_names(self, names: Sequence[str]) -> Fields:
        """These fields; with ``text`` in place of ``path`` if the names have only a text, or if
        the text alone is mapped."""
        if "path" not in self.required:
            return self
        text_mapped = self.mapped.get("text") in names and "path" not in self.mapped
        has = {folded(name) for name in names}
        paths = self.column("path") in names or folded(self.column("path")) in has
        if not text_mapped and (paths or folded(self.column("text")) not in has):
            return self
        return replace(
            self, required=tuple("text" if name == "path" else name for name in self.required)
        )

    def rename(self, names: Sequence[str], source: object, what: str = "columns") -> dict[str, str]:
        """Name of a column -> name of its field, where they differ. Warns of each guess.

        ``what`` the names are: columns, keys or arrays. Fields that are not mapped are found by
        their name, or by a similar one. A column that stands for itself no longer, because its name
        is mapped, becomes ``UNREAD``, with a notice. Also warns of names that may be a misspelling
        of an optional one that is missing.

        Raises:
            InputError: a column that is required or mapped is missing; two could be one field; or
                a mapped one is another field by its own name. The message lists those found.
        """
        renamed = self.guess(names, source, what)
        self.refuse_missing(names, renamed, source, what, partial=self.partial)
        return renamed

    def guess(self, names: Sequence[str], source: object, what: str) -> dict[str, str]:
        """As ``rename``, where columns may be missing."""
        renamed = self._by_mapping(names, source, what)
        missing = [name for name in self.known if name not in self.mapped and name not in names]
        others = [name for name in names if name not in self.known and name not in renamed]
        similar = _by_similarity(others, missing, source, what) if missing and others else {}
        doubts = [
            f"{other!r}: {name}?"
            for name in missing
            if name in self.optional and name not in similar.values()
            for other in others
            if other not in similar and _is_close(folded(other), folded(name))
        ]
        if doubts:
            result = "they are read as slices; rename them, if they are not"
            notice("unknown-column", source, f"{what} of an unknown but close name", doubts, result)
        self._warn_of_doubles(names, renamed | similar, source, what)
        return renamed | similar

    def _warn_of_doubles(
        self, names: Sequence[str], renamed: Mapping[str, str], source: object, what: str
    ) -> None:
        """Warn of names that are nearly that of a field which another column is."""
        column_of = {field: column for column, field in renamed.items()}
        column_of = {name: column_of.get(name, name) for name in self.known}
        by_form = {folded(name): name for name in self.known if column_of[name] in names}
        doubles = [
            f"{name!r} beside {column_of[by_form[folded(name)]]!r}"
            for name in names
            if name not in self.known and name not in renamed and folded(name) in by_form
        ]
        if doubles:
            result = "they are not read as such; rename or remove them"
            notice("unknown-column", source, f"{what} nearly named like another", doubles, result)

    def _by_mapping(self, names: Sequence[str], source: object, what: str) -> dict[str, str]:
        """Name -> field, as ``mapped`` says; ``UNREAD`` for names that it replaces."""
        renamed = {column: name for name, column in self.mapped.items() if name in self.known}
        for column, name in renamed.items():
            if column in self.known and column not in self.mapped and column in names:
                raise InputError(
                    f"{source}: {column!r} is mapped to {name}, and is {column} by its own name",
                    tip=f"say what {column} is, too: --column {column}=COLUMN",
                )
        replaced = [name for name in self.known if name in self.mapped and name not in renamed]
        unread = [name for name in names if name in replaced]
        if "text" in self.required and "path" in names and "path" not in renamed:
            notice("column-not-read", source, f"{what} beside a text", ["'path'"])
            renamed["path"] = UNREAD
        if unread:
            pairs = [f"{name!r}: {name} is {self.mapped[name]!r}" for name in unread]
            notice("column-not-read", source, f"{what} whose name is mapped to another", pairs)
        renamed |= dict.fromkeys(unread, UNREAD)
        return {column: name for column, name in renamed.items() if column in names}

    def refuse_missing(
        self,
        names: Sequence[str],
        renamed: Mapping[str, str],
        where: object,
        what: str,
        *,
        partial: bool,
    ) -> None:
        """Refuse names without a column that is required; or mapped, unless ``partial``.

        Raises:
            InputError: one is missing; the message begins with ``where``.
        """
        wanted = [name for name in self.mapped if name in self.known and not partial]
        missing = [
            name if self.column(name) == name else f"{self.column(name)!r} for {name}"
            for name in dict.fromkeys((*self.required, *wanted))
            if self.column(name) not in names and name not in renamed.values()
        ]
        if missing:
            more = f" and {len(names) - _MAX_FOUND} more" if len(names) > _MAX_FOUND else ""
            found = (", ".join(map(repr, names[:_MAX_FOUND])) or "none") + more
            raise InputError(
                f"{where}: there is no {_SINGULAR[what]} {', '.join(missing)}; "
                f"its {what} are {found}",
                tip=self.tip,
            )


def _by_similarity(
    others: Sequence[str], missing: Sequence[str], source: object, what: str
) -> dict[str, str]:
    """Name of ``others`` -> the ``missing`` name that it is but for case, marks and plural."""
    renamed: dict[str, str] = {}
    for name in missing:
        similar = [other for other in others if folded(other) == folded(name)]
        if len(similar) > 1:
            raise InputError(
                f"{source}: {', '.join(map(repr, similar))} could each be {name!r}",
                tip=f"rename the one that is {name}",
            )
        renamed |= dict.fromkeys(similar, name)
    if renamed:
        pairs = [f"{name!r} as {renamed[name]}" for name in others if name in renamed]
        notice("similar-column", source, f"{what} read by a similar name", pairs)
    return renamed


class LineKeys:
    """The keys of JSON objects, one a line, which may each have others."""

    def __init__(self, source: object, fields: Fields) -> None:
        self._source, self._fields = source, fields
        self._renamed: dict[tuple[str, ...], dict[str, str]] = {}

    def renamed(self, record: Mapping[str, object], where: str) -> dict[str, object]:
        """The object with the names of fields as keys.

        Raises:
            InputError: a key is missing, or could be two fields; the message begins with ``where``.
        """
        names = tuple(record)
        if names not in self._renamed:
            fields = self._fields.for_names(names)
            renamed = fields.guess(names, self._source, "keys")
            fields.refuse_missing(names, renamed, where, "keys", partial=True)
            self._renamed[names] = renamed
        renamed = self._renamed[names]
        return {renamed.get(name, name): value for name, value in record.items()}

    def refuse_unseen(self) -> None:
        """Refuse a key that is mapped to an optional field and stands in no line.

        Raises:
            InputError: there is one; the message lists the keys found.
        """
        names = tuple(dict.fromkeys(name for keys in self._renamed for name in keys))
        if names or not self._fields.required:
            with warnings.catch_warnings():  # each line gave its notices
                warnings.simplefilter("ignore", DataWarning)
                self._fields.for_names(names).rename(names, self._source, "keys")


def warn_of_hidden_words(
    slices: Iterable[Mapping[str, str]], missing: Iterable[str], source: object
) -> None:
    """Warn if every item has a slice with a role (or a split) in it, and no column is so named."""
    rows = list(slices)
    for column in missing:
        words = _WORDS[column]
        named = [
            f"{name!r}: {column}?"
            for name in rows[0]
            if all(row.get(name, "").strip().casefold() in words for row in rows)
        ]
        if named:
            result = "they are read as slices; rename them, if they are not"
            notice("unknown-column", source, f"columns that hold a {column}", named, result)


def _is_close(name: str, known: str) -> bool:
    return difflib.SequenceMatcher(a=name, b=known).ratio() > _CLOSE
