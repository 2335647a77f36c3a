"""What makes a table usable or not: one list, for import and for doctor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from compatctl.engines.facts import ServerFacts, TableFacts
from compatctl.engines.location import TableLocation
from compatctl.printable import listed

OLDEST = (0, 5)
"""The first pgvector with hnsw."""
_IDS = ("smallint", "integer", "bigint", "text", "character varying", "uuid")
_VECTORS = {"vector": 2000, "halfvec": 4000}
"""A type -> the most dimensions that hnsw takes."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A property of a server or table.

    Attributes:
        name: of the property; ``found``: what it is.
        problem: what is wrong with it; "" if nothing is.
        fatal: the table cannot be used so.
        tip: what to do.
    """

    name: str
    found: str
    problem: str = ""
    fatal: bool = False
    tip: str = ""

    @property
    def status(self) -> str:
        """ok, warning or error."""
        return "error" if self.fatal else "warning" if self.problem else "ok"


def table_problems(
    location: TableLocation, server: ServerFacts, facts: TableFacts, *, dim: int | None = None
) -> tuple[Check, ...]:
    """Every check, in an order in which each assumes the ones before.

    ``dim``: the model's dimension, where it is known.
    """
    checks = [_server(server)]
    checks.append(_extension(server))
    checks.append(_table(location, facts))
    if checks[-1].fatal:
        return tuple(checks)
    checks += _columns(location, facts)
    if facts.vector_type in _VECTORS:
        checks += _vector(facts, server, dim)
    checks += _row_security(server, facts)
    checks.append(_permissions(facts))
    problem = side_problem(location, server, facts)
    told = f"backfill and lift cannot write vectors beside the table: {problem}" if problem else ""
    checks.append(
        Check(
            name="side tables", found="no" if problem else "can be made", problem=told,
            tip="GRANT CREATE ON SCHEMA, if you mean to backfill or lift" if problem else "",
        )
    )  # fmt: skip
    return tuple(checks)


def side_problem(location: TableLocation, server: ServerFacts, facts: TableFacts) -> str:
    """Why no side table can be made beside a table; "" if one can."""
    if not server.iterative_scan:
        return (
            f"pgvector is {server.vector_text or 'not there'}: the scan of an index that goes on "
            "where a filter drops rows came with 0.8"
        )
    if not facts.id_unique:
        return (
            f"no unique index of the column {location.id}: each row that is found is looked up "
            "by its id"
        )
    if not facts.may_create:
        return f"the role may not create tables in the schema {location.schema}"
    return ""


def _server(server: ServerFacts) -> Check:
    told = "transactions are read-only there, and a deploy writes a row" if server.read_only else ""
    return Check(
        name="server",
        found=f"PostgreSQL {server.version_text} as {server.user}",
        problem=told,
        fatal=server.read_only,
        tip="name the primary server, not a standby, and a role without "
        "default_transaction_read_only"
        if told
        else "",
    )


def _row_security(server: ServerFacts, facts: TableFacts) -> Iterator[Check]:
    if facts.rows_hidden:
        yield Check(
            name="row security",
            found="active",
            problem=f"policies of row-level security decide which rows {server.user} sees: the "
            "others are neither adopted nor judged",
            tip="connect as a role that sees every row, as one with BYPASSRLS does",
        )


def _extension(server: ServerFacts) -> Check:
    name, found = "pgvector", server.vector_text or "not in this database"
    if server.vector is None:
        problem = "the extension vector is not in this database"
        return Check(name=name, found=found, problem=problem, fatal=True,
                     tip="CREATE EXTENSION vector")  # fmt: skip
    if server.vector < OLDEST:
        return Check(
            name=name,
            found=found,
            problem=f"pgvector {server.vector_text} has no hnsw; at least 0.5 is needed",
            fatal=True,
            tip="ALTER EXTENSION vector UPDATE",
        )
    if not server.reachable:
        return Check(
            name=name,
            found=f"{found} in the schema {server.schema}",
            problem=f"the extension vector is in the schema {server.schema}, which is not on the "
            f"search path of {server.user}: a search finds neither its types nor its operators",
            fatal=True,
            tip="ALTER ROLE ... SET search_path, also of the role of the application",
        )
    return Check(name=name, found=found)


def _table(location: TableLocation, facts: TableFacts) -> Check:
    name = f"{location.schema}.{location.table}" if location.schema else location.table
    if not facts.kind:
        return Check(name="table", found=name, problem=f"there is no table {name}", fatal=True,
                     tip="name it as TABLE or SCHEMA.TABLE after the database")  # fmt: skip
    if facts.kind not in {"table", "partitioned table"}:
        return Check(name="table", found=f"{name}, a {facts.kind}", fatal=True,
                     problem=f"{name} is a {facts.kind}, not a table",
                     tip="name the table behind it")  # fmt: skip
    return Check(name="table", found=f"{facts.schema}.{location.table}")


def _columns(location: TableLocation, facts: TableFacts) -> Iterator[Check]:
    for name, kind in (
        ("id", facts.id_type),
        ("vector", facts.vector_type),
        *((("label", facts.label_type),) if location.label else ()),
    ):
        column = getattr(location, name)
        if kind is None:
            yield Check(
                name=f"column {name}",
                found=column,
                problem=f"the table has no column {column}",
                fatal=True,
                tip=f"its columns are {listed(facts.columns)}",
            )
    if facts.id_type is not None:
        yield _id(location, facts)
    if facts.vector_type is not None and facts.vector_type not in _VECTORS:
        yield Check(
            name="column vector",
            found=f"{location.vector} {facts.vector_type}",
            problem=f"the column {location.vector} is of type {facts.vector_type}, not vector or "
            "halfvec",
            fatal=True,
            tip="sparse and binary vectors, and arrays, are not searched by these operators",
        )


def _id(location: TableLocation, facts: TableFacts) -> Check:
    found = f"{location.id} {facts.id_type}"
    if facts.id_type not in _IDS:
        return Check(name="column id", found=found, fatal=True,
                     problem=f"the column {location.id} is of type {facts.id_type}",
                     tip=f"an id is of type {', '.join(_IDS)}")  # fmt: skip
    open_ = ["may be NULL"] * facts.id_null + ["may be there twice"] * (not facts.id_unique)
    problem = f"nothing keeps ids apart: an id {' and '.join(open_)}" if open_ else ""
    return Check(name="column id", found=found, problem=problem,
                 tip="a primary key, or a unique index" if open_ else "")  # fmt: skip


def _vector(facts: TableFacts, server: ServerFacts, dim: int | None) -> Iterator[Check]:
    kind, most = facts.vector_type or "", _VECTORS[facts.vector_type or ""]
    found = f"{kind}({facts.dim})" if facts.dim else f"{kind} of any dimension"
    wrong = dim is not None and facts.dim not in {None, dim}
    yield Check(
        name="column vector",
        found=found,
        problem=f"its vectors have {facts.dim} dimensions, the model has {dim}"
        if wrong
        else ""
        if facts.dim
        else "the type does not fix the dimension, which hnsw needs",
        fatal=wrong,
        tip="name the model that filled this column" if wrong else "",
    )
    names = [f"{index.name} ({index.method}, {index.space})" for index in facts.usable]
    unused = [f"{index.name}: {index.defect}" for index in facts.indexes if index.defect]
    beyond = f"; hnsw takes at most {most} dimensions of {kind}" * ((facts.dim or 0) > most)
    yield Check(
        name="index",
        found=listed(names) if names else "none",
        problem="; ".join(unused)
        if names
        else "; ".join([f"every search reads the whole table{beyond}", *unused]),
        tip="" if names else "CREATE INDEX ON ... USING hnsw (... vector_cosine_ops)",
    )
    if names and not any(index.method == "hnsw" for index in facts.usable):
        yield Check(name="index kind", found="ivfflat",
                    problem="ef_search has no effect; ivfflat.probes decides")  # fmt: skip
    yield Check(
        name="iterative scan",
        found="yes" if server.iterative_scan else "no",
        problem=""
        if server.iterative_scan
        else "where a filter drops rows, an index scan returns fewer rows than it should: those "
        "searches are exact; pgvector 0.8 or newer goes on",
        tip="" if server.iterative_scan else "ALTER EXTENSION vector UPDATE",
    )


def _permissions(facts: TableFacts) -> Check:
    missing = ["read the table"] * (not facts.may_read)
    missing += ["write compatctl_deployment, or create it in the schema"] * (not facts.may_switch)
    problem = f"the role may not {' or '.join(missing)}" if missing else ""
    return Check(
        name="permissions",
        found="read and switch" if not missing else "too few",
        problem=problem,
        fatal=bool(missing),
        tip="GRANT SELECT on the table, and SELECT, INSERT, UPDATE on compatctl_deployment"
        if missing
        else "",
    )
