"""doctor: can this table be adopted, and what would be better?"""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.engines import (
    PGVECTOR,
    Check,
    Location,
    deployment_of,
    engine_of,
    inspect,
    is_engine_url,
    open_connection_to,
    parse_url,
    rows_of,
)
from compatctl.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One property: its ``status`` is ok, warning or error."""

    name: str
    status: str
    found: str
    problem: str
    tip: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found. ``url`` has no password; ``usable``: no finding is an error."""

    url: str
    usable: bool
    findings: tuple[Finding, ...]


def doctor(url: str) -> Diagnosis:
    """Check a table of PostgreSQL or a collection of Milvus. Nothing is written.

    Raises:
        UsageError: the URL is of another form, or ``COMPATCTL_ENGINE_URL`` contradicts it.
        InputError: the engine's library is not installed.
        CompatError: the server cannot be reached.
    """
    if not is_engine_url(url):
        raise UsageError("doctor checks the URL of a table", tip="postgresql://... or milvus://...")
    named = parse_url(url)
    named.require_same_way()
    location = named.from_environment()
    with open_connection_to(location) as connection:
        found = inspect(connection, location)
        checks, location = list(found.checks), found.location
        if not found.errors:
            rows = rows_of(
                location,
                id_type=found.id_type,
                vector_type=found.vector_type,
                dim=found.dim or 1,
            )
            checks.append(_rows(*rows.count(connection)))
    if found.exists:
        checks.append(_row(location))
    return Diagnosis(
        url=location.url,
        usable=not any(check.fatal for check in checks),
        findings=tuple(
            Finding(
                name=check.name,
                status=check.status,
                found=check.found,
                problem=check.problem,
                tip=check.tip,
            )
            for check in checks
        ),
    )


def _rows(with_vector: int, without: int) -> Check:
    problem = "no row has a vector" if not with_vector else ""
    if without and with_vector:
        problem = f"{without} rows have no vector: they are not part of a gallery"
    return Check(name="rows", found=f"{with_vector} with a vector", problem=problem,
                 fatal=not with_vector)  # fmt: skip


def _row(location: Location) -> Check:
    row = deployment_of(location).read()
    found = (
        f"no row {location.name!r} yet"
        if row is None
        else f"row {location.name!r} at epoch {row.epoch}, model {row.query_model[:12]}"
    )
    where = "compatctl_deployment" if engine_of(location) == PGVECTOR else "properties"
    return Check(name=where, found=found)
