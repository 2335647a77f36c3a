"""Engines that hold a gallery outside the store: PostgreSQL with pgvector, and Milvus.

The store folder keeps history, models and the catalogue; the vectors stay in a table or collection
that an application owns. What is switched is one row that the application reads: in
``compatctl_deployment``, or in the properties of the collection. psycopg and pymilvus are loaded
when a connection is made.
"""

from __future__ import annotations

from compatctl.engines.checks import Check
from compatctl.engines.connection import Connection
from compatctl.engines.deployment_row import DeploymentRow
from compatctl.engines.engine import (
    Deployment,
    EngineSearch,
    Pool,
    Rows,
    deployment_of,
    engine_of,
    inspect,
    is_engine_url,
    open_connection_to,
    operators_of,
    parse_url,
    pool_of,
    require_engine,
    rows_of,
    search_of,
)
from compatctl.engines.facts import VectorIndexFacts
from compatctl.engines.inspection import Inspection, Location
from compatctl.engines.location import PGVECTOR, TableLocation
from compatctl.engines.milvus.location import MILVUS, CollectionLocation
from compatctl.engines.rows import RowBlock
from compatctl.engines.search import FencedSearch, Scan, StaleEpochError
from compatctl.engines.table_file import TableFile
from compatctl.engines.url import URL_VARIABLE

__all__ = [
    "MILVUS",
    "PGVECTOR",
    "URL_VARIABLE",
    "Check",
    "CollectionLocation",
    "Connection",
    "Deployment",
    "DeploymentRow",
    "EngineSearch",
    "FencedSearch",
    "Inspection",
    "Location",
    "Pool",
    "RowBlock",
    "Rows",
    "Scan",
    "StaleEpochError",
    "TableFile",
    "TableLocation",
    "VectorIndexFacts",
    "deployment_of",
    "engine_of",
    "inspect",
    "is_engine_url",
    "open_connection_to",
    "operators_of",
    "parse_url",
    "pool_of",
    "require_engine",
    "rows_of",
    "search_of",
]
