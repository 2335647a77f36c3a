"""backfill --worker: embed for a backfill that another process runs on the same store."""

from __future__ import annotations

from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import load_query_model
from compatctl.deployment.project import open_store
from compatctl.deployment.shared_embedding import Worked, queue_location, work
from compatctl.errors import UsageError
from compatctl.recipe import Project


def work_for_backfill(project: Project, *, idle_s: float) -> Worked:
    """Embed blocks of the store's backfill until there was none for ``idle_s`` seconds.

    Raises:
        UsageError: the store's rows are not in a table of PostgreSQL.
        InputError: the data are not those of the backfill. CompatError: no server.
    """
    store = open_store(project)
    location = queue_location(store, store.manifest)
    if location is None:
        raise UsageError(
            "backfill --worker is for a store whose rows are in a table of PostgreSQL, which has "
            "the queue",
            tip="compatctl backfill --ray shares the embedding of any store among many processes",
        )
    encoder = load_query_model(store, store.manifest)
    return work(encoder, load_data(project), location, idle_s=idle_s)
