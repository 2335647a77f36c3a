"""Commands on engines outside a store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from compatctl.cli.app import Outcome, command


@command
def doctor(
    url: Annotated[
        str,
        typer.Argument(
            help="A table: postgresql://USER@HOST:PORT/DATABASE/TABLE?id=COLUMN&vector=COLUMN, or "
            "a collection: milvus://HOST:PORT/DATABASE/COLLECTION?id=FIELD&vector=FIELD."
        ),
    ],
) -> Outcome[Any]:
    """Check whether a table or collection can be adopted.

    Looks at versions, columns, indexes, permissions and the row; writes nothing.
    """
    from compatctl.commands.doctor import doctor
    from compatctl.render.tables import doctor_table

    result = doctor(url)
    return Outcome(result=result, table=doctor_table, exit_code=0 if result.usable else 5)
