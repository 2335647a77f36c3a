"""The properties of a collection that an application reads: which model embeds its queries.

They are the switch: all of them change in one call. Milvus has no compare-and-swap of properties:
the row is read before the call and after it, so a second writer is noticed if its call is not just
between. Writers of one store exclude each other by the store's lock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from compatctl.engines.deployment_row import DeploymentRow
from compatctl.engines.milvus.connection import CALL_S, Client, connect_milvus
from compatctl.engines.milvus.location import CollectionLocation
from compatctl.errors import ConflictError

_ENTRIES = tuple(entry.name for entry in fields(DeploymentRow))
_NUMBERS = ("epoch", "ef_search", "previous_epoch")


@dataclass(frozen=True, kw_only=True)
class DeploymentProperties:
    """The row of one collection, in its properties ``NAME.epoch``, ``NAME.query_model``, ..."""

    location: CollectionLocation

    def read(self) -> DeploymentRow | None:
        """The row, or None where there is none.

        Raises:
            CompatError: the server cannot be reached; InputError: it refuses.
            ConflictError: the properties are not those of a row.
        """
        with connect_milvus(self.location) as client:
            return self._read(client)

    def insert(self, row: DeploymentRow) -> None:
        """Write the first row.

        Raises:
            ConflictError: there is one of that name.
        """
        with connect_milvus(self.location) as client:
            if self._read(client) is not None:
                raise ConflictError(
                    f"the collection {self.location.table} has properties {self.location.name}.* "
                    "already: another store switches it",
                    tip="go on with that store; or &name=OTHER in the URL makes other properties",
                )
            self._write(client, row)

    def swap(self, row: DeploymentRow, *, expected: DeploymentRow) -> None:
        """Replace ``expected`` by ``row``.

        Raises:
            ConflictError: the row is another one by now, or became another one at once.
        """
        with connect_milvus(self.location) as client:
            now = self._read(client)
            if now is None or (now.epoch, now.manifest) != (expected.epoch, expected.manifest):
                self._refuse(f"no longer that of epoch {expected.epoch}")
            self._write(client, row)

    def elsewhere(self) -> str:
        """That the alias by which the collection was adopted leads to another one; "" if not."""
        if not self.location.alias:
            return ""
        with connect_milvus(self.location) as client:
            found = client.describe_collection(self.location.table, timeout=CALL_S)
        if self.location.alias in found["aliases"]:
            return ""
        return (
            f"the alias {self.location.alias} is no longer one of the collection "
            f"{self.location.table}, which the store adopted and searches"
        )

    def _write(self, client: Client, row: DeploymentRow) -> None:
        client.alter_collection_properties(
            self.location.table, properties=self._texts(row), timeout=CALL_S
        )
        if self._read(client) != row:
            self._refuse("not the one that was just written")

    def _read(self, client: Client) -> DeploymentRow | None:
        return read_row(self.location, client)

    def _texts(self, row: DeploymentRow) -> dict[str, str]:
        values = {name: "" if value is None else value for name, value in asdict(row).items()}
        values["calibration"] = "" if row.calibration is None else json.dumps(row.calibration)
        values["side_batches"] = ",".join(map(str, row.side_batches))
        del values["search_sql"]  # Milvus has no statements
        return {f"{self.location.name}.{name}": str(value) for name, value in values.items()}

    def _refuse(self, what: str) -> None:
        raise ConflictError(
            f"{self.location.row} is {what}: somebody else switched it",
            tip="compatctl check says how the row and the store differ",
        )


def read_row(location: CollectionLocation, client: Client) -> DeploymentRow | None:
    """The row that the properties hold, or None where they hold none, by one call.

    Raises:
        ConflictError: they hold something else.
    """
    found: Mapping[str, str] = client.describe_collection(location.table, timeout=CALL_S)[
        "properties"
    ]
    values: dict[str, Any] = {name: found.get(f"{location.name}.{name}", "") for name in _ENTRIES}
    if not values["epoch"]:
        return None
    try:
        for name in _NUMBERS:
            values[name] = int(values[name]) if values[name] else None
        knots = json.loads(values["calibration"]) if values["calibration"] else None
        values["calibration"] = knots and tuple(map(tuple, knots))
        values["side_batches"] = tuple(map(int, filter(None, values["side_batches"].split(","))))
    except (ValueError, TypeError):
        raise ConflictError(
            f"{location.row} was changed by hand: a number is none",
            tip="set the properties to what compatctl status calls generation and head",
        ) from None
    return DeploymentRow(**values)
