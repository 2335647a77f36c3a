"""The schema of a collection that is made beside an application's: the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatctl.engines.milvus.connection import CALL_S, Client
from compatctl.engines.milvus.location import CollectionLocation
from compatctl.printable import listed

_DESCRIPTION = "vectors of compatctl, of the properties {}.* of {}"
_DYNAMIC = "$meta"
"""The field that holds what the schema does not name."""
_COPIED = ("BOOL", "INT8", "INT16", "INT32", "INT64", "FLOAT", "DOUBLE", "VARCHAR", "JSON", "ARRAY")
"""Types of fields that are copied."""
_PARAMETERS = ("max_length", "max_capacity")


def description_of(location: CollectionLocation) -> str:
    """By what a collection is known to be made beside another one."""
    return _DESCRIPTION.format(location.name, location.table)


def collection_problem(connection: Client, location: CollectionLocation) -> str:
    """Why no collection can be made beside a collection; "" if one can."""
    found = connection.describe_collection(location.table, timeout=CALL_S)
    others = _others(found, location)
    odd = [f"{entry['name']} ({entry['type'].name})" for entry in others
           if entry["type"].name not in _COPIED]  # fmt: skip
    if odd:
        return f"its fields are copied, so that filters go on, and these cannot be: {listed(odd)}"
    split = [entry["name"] for entry in found["fields"] if entry.get("is_partition_key")]
    partitions = connection.list_partitions(location.table, timeout=CALL_S)
    if split or len(partitions) > 1:
        named = split or [name for name in partitions if name != "_default"]
        return (
            "it is divided, and an application that searches a part would search another "
            f"collection without: {listed(named)}"
        )
    return ""


def copied_fields(connection: Client, location: CollectionLocation) -> list[str]:
    """The names of the fields besides key and vector, to be read."""
    found = connection.describe_collection(location.table, timeout=CALL_S)
    names = [entry["name"] for entry in _others(found, location)]
    return [*names, *([_DYNAMIC] if found["enable_dynamic_field"] else [])]


def create_collection(
    connection: Client, location: CollectionLocation, name: str, dim: int, *, bare: bool = False
) -> None:
    """Make an empty collection with the fields of the application's, for vectors of ``dim``
    dimensions; ``bare``: with key and vector alone."""
    found = connection.describe_collection(location.table, timeout=CALL_S)
    schema = connection.create_schema(
        auto_id=False,
        enable_dynamic_field=bool(found["enable_dynamic_field"]) and not bare,
        description=description_of(location),
    )
    for entry in found["fields"]:
        field, kind = entry["name"], entry["type"]
        if field == location.vector:
            schema.add_field(field, kind, dim=dim)
        elif entry.get("is_primary"):
            schema.add_field(field, kind, is_primary=True, **_parameters(entry))
        elif not bare:
            schema.add_field(field, kind, **_parameters(entry))
    connection.create_collection(name, schema=schema, timeout=CALL_S)


def _others(found: Mapping[str, Any], location: CollectionLocation) -> list[Mapping[str, Any]]:
    return [
        entry
        for entry in found["fields"]
        if entry["name"] != location.vector and not entry.get("is_primary")
    ]


def _parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: entry["params"][name] for name in _PARAMETERS if name in entry["params"]}
    if "element_type" in entry:
        given["element_type"] = entry["element_type"]
    if entry.get("nullable"):
        given["nullable"] = True
    return given
