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
    batches_are_whole,
    deployment_of,
    engine_of,
    erase_beside,
    growing_side_of,
    inspect,
    is_engine_url,
    new_side,
    open_connection_to,
    operators_of,
    parse_url,
    pool_of,
    require_engine,
    rows_of,
    search_of,
    search_sql_of,
    searched_table,
    side_of,
    side_refusal,
    side_table_name,
    snapshot_of,
    sweep_sides_of,
)
from compatctl.engines.facts import VectorIndexFacts
from compatctl.engines.inspection import Inspection, Location
from compatctl.engines.location import PGVECTOR, TableLocation
from compatctl.engines.milvus.location import MILVUS, CollectionLocation
from compatctl.engines.queue import BlockQueue, QueuedBlock, block_queue
from compatctl.engines.rows import RowBlock
from compatctl.engines.search import FencedSearch, Found, Scan, StaleEpochError
from compatctl.engines.side import SideTable
from compatctl.engines.table_file import RowChecksums, TableFile
from compatctl.engines.url import URL_VARIABLE

__all__ = [
    "MILVUS",
    "PGVECTOR",
    "URL_VARIABLE",
    "BlockQueue",
    "Check",
    "CollectionLocation",
    "Connection",
    "Deployment",
    "DeploymentRow",
    "EngineSearch",
    "FencedSearch",
    "Found",
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
    "batches_are_whole",
    "block_queue",
    "deployment_of",
    "engine_of",
    "erase_beside",
    "growing_side_of",
    "inspect",
    "is_engine_url",
    "new_side",
    "open_connection_to",
    "operators_of",
    "parse_url",
    "pool_of",
    "require_engine",
    "rows_of",
    "search_of",
    "search_sql_of",
    "searched_table",
    "side_of",
    "side_refusal",
    "side_table_name",
    "snapshot_of",
    "sweep_sides_of",
]
