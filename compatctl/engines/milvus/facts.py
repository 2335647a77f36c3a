"""What a server says of a collection, and what makes it usable or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compatctl.engines.checks import Check
from compatctl.engines.facts import VectorIndexFacts
from compatctl.engines.inspection import Inspection
from compatctl.engines.milvus.connection import CALL_S, Client
from compatctl.engines.milvus.location import CollectionLocation
from compatctl.engines.milvus.rows import unloaded
from compatctl.engines.milvus.side_schema import collection_problem
from compatctl.printable import listed

OPERATORS = {"cosine": "COSINE", "ip": "IP", "l2": "L2"}
"""A space -> the metric type that ranks by it."""
_SPACES = {operator: space for space, operator in OPERATORS.items()}
_VECTOR = "FLOAT_VECTOR"
_VECTORS = (_VECTOR, "BINARY_VECTOR", "SPARSE_FLOAT_VECTOR", "FLOAT16_VECTOR", "BFLOAT16_VECTOR",
            "INT8_VECTOR")  # fmt: skip
_NO_COLLECTION = 100
_NO_DATABASE = 800


def inspect_collection(
    client: Client, location: CollectionLocation, dim: int | None = None
) -> Inspection:
    """A collection. ``dim``: the model's dimension, where it is known."""
    from pymilvus.exceptions import MilvusException

    server = Check(name="server", found=f"Milvus {client.get_server_version()}")
    try:
        found = client.describe_collection(location.table, timeout=CALL_S)
    except MilvusException as error:
        if error.code not in {_NO_COLLECTION, _NO_DATABASE}:
            raise
        name = f"collection {location.table} in the database {location.database}"
        missing = Check(name="collection", found=location.table, problem=f"there is no {name}",
                        fatal=True, tip="name it as DATABASE/COLLECTION in the URL")  # fmt: skip
        return Inspection(location=location, exists=False, checks=(server, missing))
    if found["collection_name"] != location.table:
        location = replace(location, table=found["collection_name"], alias=location.table)
    return _inspected(client, location, found, server, dim)


def _inspected(
    client: Client,
    location: CollectionLocation,
    found: Mapping[str, Any],
    server: Check,
    dim: int | None,
) -> Inspection:
    fields = {entry["name"]: entry for entry in found["fields"]}
    vector = fields.get(location.vector)
    kind = vector["type"].name if vector else ""
    checks = [server, _collection(location)]
    checks += _columns(location, found, fields)
    indexes: tuple[VectorIndexFacts, ...] = ()
    size = None
    if vector and kind == _VECTOR:
        size = int(vector["params"]["dim"])
        checks.append(_dimension(size, dim))
        raw = _raw_indexes(client, location)
        indexes = tuple(_index(entry) for entry in raw)
        checks += _searchable(client, location, raw, indexes)
        checks.append(_beside(client, location))
    primary = fields.get(location.id)
    return Inspection(
        location=location,
        exists=True,
        checks=tuple(checks),
        id_type=primary["type"].name.lower() if primary else "",
        vector_type=kind,
        dim=size,
        indexes=indexes,
    )


def _collection(location: CollectionLocation) -> Check:
    if not location.alias:
        return Check(name="collection", found=location.table)
    return Check(
        name="collection",
        found=f"{location.table}, behind the alias {location.alias}",
        problem=f"{location.alias} is an alias of {location.table}: the collection itself is "
        "adopted, and where the alias leads later does not matter to the store",
        tip="the application searches the collection that search_table names",
    )


def _columns(
    location: CollectionLocation, found: Mapping[str, Any], fields: Mapping[str, Any]
) -> Iterator[Check]:
    dynamic = bool(found.get("enable_dynamic_field"))
    names = ("id", "vector", *(("label",) if location.label and not dynamic else ()))
    for name in names:
        field = getattr(location, name)
        if field not in fields:
            yield Check(name=f"field {name}", found=field, fatal=True,
                        problem=f"the collection has no field {field}",
                        tip=f"its fields are {listed([*fields])}")  # fmt: skip
    primary = next((name for name, entry in fields.items() if entry.get("is_primary")), "")
    if location.id in fields:
        wrong = location.id != primary
        yield Check(
            name="field id",
            found=f"{location.id} {fields[location.id]['type'].name}",
            problem=f"the field {location.id} is not the primary key, which is {primary}"
            if wrong
            else "",
            fatal=wrong,
            tip=f"?id={primary}" if wrong else "",
        )
    if location.vector in fields:
        kind = fields[location.vector]["type"].name
        wrong = kind != _VECTOR
        sort = "binary, sparse and short vectors are" if kind in _VECTORS else "it is"
        yield Check(
            name="field vector",
            found=f"{location.vector} {kind}",
            problem=f"the field {location.vector} is of type {kind}, not {_VECTOR}"
            if wrong
            else "",
            fatal=wrong,
            tip=f"{sort} not compared with the embeddings of a model" if wrong else "",
        )


def _dimension(size: int, dim: int | None) -> Check:
    wrong = dim is not None and size != dim
    return Check(
        name="dimension",
        found=str(size),
        problem=f"its vectors have {size} dimensions, the model has {dim}" if wrong else "",
        fatal=wrong,
        tip="name the model that filled this field" if wrong else "",
    )


def _raw_indexes(client: Client, location: CollectionLocation) -> list[Mapping[str, Any]]:
    names = client.list_indexes(location.table, field_name=location.vector, timeout=CALL_S)
    return [client.describe_index(location.table, name, timeout=CALL_S) for name in names]


def _index(raw: Mapping[str, Any]) -> VectorIndexFacts:
    metric = raw["metric_type"]
    return VectorIndexFacts(
        name=raw["index_name"],
        method=raw["index_type"].lower(),
        space=_SPACES.get(metric, metric),
        m=int(raw.get("M", 16)),
        ef_construction=int(raw.get("efConstruction", 64)),
        defect="" if metric in _SPACES else f"it ranks by {metric}",
    )


def _searchable(
    client: Client,
    location: CollectionLocation,
    raw: list[Mapping[str, Any]],
    indexes: tuple[VectorIndexFacts, ...],
) -> Iterator[Check]:
    """The index, how far it is, and whether every partition is loaded."""
    if not raw:
        yield Check(name="index", found="none", fatal=True,
                    problem=f"the field {location.vector} has no index: Milvus searches no "
                    "collection without one",
                    tip="create_index, then load_collection")  # fmt: skip
        return
    defects = [f"{index.name}: {index.defect}" for index in indexes if index.defect]
    behind = [entry for entry in raw if int(entry["indexed_rows"]) < int(entry["total_rows"])]
    late = "; ".join(
        f"{entry['indexed_rows']} of {entry['total_rows']} rows are in the index, the others are "
        "searched one by one until it is built"
        for entry in behind
    )
    yield Check(
        name="index",
        found=listed([f"{index.name} ({index.method}, {index.space})" for index in indexes]),
        problem="; ".join(defects) or late,
        fatal=bool(defects),
        tip="an index of COSINE, IP or L2" if defects else "",
    )
    yield _loaded(client, location)


def _beside(client: Client, location: CollectionLocation) -> Check:
    problem = collection_problem(client, location)
    told = f"backfill and lift cannot make a collection beside it: {problem}" if problem else ""
    return Check(name="side collections", found="no" if problem else "can be made", problem=told)


def _loaded(client: Client, location: CollectionLocation) -> Check:
    problem = unloaded(client, location.table)
    if not problem:
        return Check(name="loaded", found="every partition")
    return Check(name="loaded", found="not all", problem=problem, fatal=True,
                 tip="load_collection: rows elsewhere are neither read nor found")  # fmt: skip
