"""The next item of an iterator is made while the current one is used."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """The items, each of which is made in a thread while the one before is used: at most one is
    made ahead. All of them are made in the same thread, never two at once.

    Where the iteration ends early, by an error or because the caller closes it, the item that is
    being made is waited for, and ``items`` is closed. An error of ``items`` is raised where its
    item would have come.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="compatctl-read-ahead") as thread:
        try:
            following = thread.submit(next, items, end)
            while (item := following.result()) is not end:
                following = thread.submit(next, items, end)
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(wait=True)
            items.close()
