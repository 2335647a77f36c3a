"""The table of inspect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from compatctl.render.console import cell

if TYPE_CHECKING:
    from rich.console import Console

    from compatctl.commands.inspect import Checked, Inspection


def inspection_table(console: Console, found: Inspection) -> None:
    """The kind, a line for each fact, the contract, and what is missing with its file."""
    console.print(f"{cell(found.path)}: {cell(found.kind)}")
    for name, entry in found.facts.items():
        shown = ", ".join(map(cell, entry)) if isinstance(entry, list | tuple) else _text(entry)
        console.print(f"  {cell(name).replace('_', ' '):<20} {shown or 'none'}")
    if found.contract:
        console.print(f"contract: {cell(found.contract)}")
    for lack in found.missing:
        console.print(f"missing: {cell(lack)}")
    if found.write is not None:
        console.print(f"write {cell(found.write.name)}, and correct it:")
        console.print(cell(json.dumps(found.write.content)))
    for command in found.next:
        console.print(f"next: {cell(command)}")


def checked_table(console: Console, checked: Checked) -> None:
    """A line for each file, and one for each thing that is missing to use it."""
    for found in checked.files:
        console.print(
            f"{cell(found.path)}: {'cannot be used' if found.missing else cell(found.kind)}"
        )
        for lack in found.missing:
            console.print(f"  {cell(lack)}")


def _text(entry: object) -> str:
    if isinstance(entry, dict):
        return ", ".join(f"{cell(key)}: {cell(value)}" for key, value in entry.items())
    return cell(entry)
