"""Engines that hold a gallery outside the store: PostgreSQL with pgvector.

The store folder keeps history, models and the catalogue; the vectors stay in a table that an
application owns. What is switched is one row of ``compatctl_deployment``, which the application
reads. psycopg is loaded when a connection is made.
"""

from __future__ import annotations

from compatctl.engines.checks import Check, table_problems
from compatctl.engines.connection import Connection, ConnectionPool, connect, require_psycopg
from compatctl.engines.deployment_row import DeploymentRow, DeploymentTable
from compatctl.engines.facts import MAX_EF, ServerFacts, TableFacts, VectorIndexFacts, read_facts
from compatctl.engines.location import (
    PGVECTOR,
    URL_VARIABLE,
    TableLocation,
    is_engine_url,
    parse_url,
)
from compatctl.engines.rows import RowBlock, TableRows
from compatctl.engines.search import FencedSearch, Scan, StaleEpochError
from compatctl.engines.table_file import TableFile

__all__ = [
    "MAX_EF",
    "PGVECTOR",
    "URL_VARIABLE",
    "Check",
    "Connection",
    "ConnectionPool",
    "DeploymentRow",
    "DeploymentTable",
    "FencedSearch",
    "RowBlock",
    "Scan",
    "ServerFacts",
    "StaleEpochError",
    "TableFacts",
    "TableFile",
    "TableLocation",
    "TableRows",
    "VectorIndexFacts",
    "connect",
    "is_engine_url",
    "parse_url",
    "read_facts",
    "require_psycopg",
    "table_problems",
]
