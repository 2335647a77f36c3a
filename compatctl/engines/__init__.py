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
    Side,
    deployment_of,
    engine_of,
    erase_beside,
    inspect,
    is_engine_url,
    open_connection_to,
    operators_of,
    parse_url,
    pool_of,
    require_engine,
    rows_of,
    search_of,
    search_sql_of,
    side_of,
    side_refusal,
    snapshot_of,
    sweep_sides_of,
)
from compatctl.engines.facts import VectorIndexFacts
from compatctl.engines.inspection import Inspection, Location
from compatctl.engines.location import PGVECTOR, TableLocation
from compatctl.engines.milvus.location import MILVUS, CollectionLocation
from compatctl.engines.queue import BlockQueue, QueuedBlock, block_queue
from compatctl.engines.rows import RowBlock
from compatctl.engines.search import FencedSearch, Scan, StaleEpochError
from compatctl.engines.side import ID as SIDE_ID
from compatctl.engines.side import VECTOR as SIDE_VECTOR
from compatctl.engines.side import SideTable, side_name, vector_type_of
from compatctl.engines.table_file import RowChecksums, TableFile
from compatctl.engines.url import URL_VARIABLE

__all__ = [
    "MILVUS",
    "PGVECTOR",
    "SIDE_ID",
    "SIDE_VECTOR",
    "URL_VARIABLE",
    "BlockQueue",
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
    "QueuedBlock",
    "RowBlock",
    "RowChecksums",
    "Rows",
    "Scan",
    "Side",
    "SideTable",
    "StaleEpochError",
    "TableFile",
    "TableLocation",
    "VectorIndexFacts",
    "block_queue",
    "deployment_of",
    "engine_of",
    "erase_beside",
    "inspect",
    "is_engine_url",
    "open_connection_to",
    "operators_of",
    "parse_url",
    "pool_of",
    "require_engine",
    "rows_of",
    "search_of",
    "search_sql_of",
    "side_name",
    "side_of",
    "side_refusal",
    "snapshot_of",
    "sweep_sides_of",
    "vector_type_of",
]
