"""The row of an engine, switched with each generation of a store whose rows are in that engine.

A commit writes the history file, then the row, then manifest.json. So a row that names a generation
always finds its file in the history, and a commit that was killed after the row was switched is
completed by the next writer: the application follows the row already. Killed before it, nothing was
switched. In a bucket manifest.json is the commit, the row follows, and the next writer switches a
row that is one generation behind. Any other difference is refused: it is another copy of the store,
or a restored database.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compatctl.errors import CompatError, ConflictError
from compatctl.files import Lock, write_atomic
from compatctl.manifest import Manifest
from compatctl.notices import notice
from compatctl.store._layout import (
    LOCK,
    MANIFEST,
    blob_path,
    generation_path,
    is_regular_file,
    manifest_bytes,
    manifest_digest,
    read_current,
    read_generation,
    require_blobs,
)
from compatctl.store._remote import is_in_bucket, remote_of, shown_path, store_exists

if TYPE_CHECKING:
    from compatctl.engines import Deployment, DeploymentRow, TableFile

_COMPLETES = "the next command that writes, such as compatctl check --gc, completes it"
_WAIT_S = 10.0
"""Seconds to wait for the lock."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """The row of a table; ``file`` says which. What a generation's row says is in the generation's
    own file, in the store at ``root``."""

    file: TableFile
    root: Path

    @property
    def table(self) -> Deployment:
        """What holds the row, reached as the environment says."""
        from compatctl.engines import deployment_of

        return deployment_of(self.file.location.from_environment())

    def switch(self, before: Manifest | None, after: Manifest) -> None:
        """Make the row that of ``after``, if it is that of ``before``; None: there is none yet.

        Raises:
            ConflictError: it is another one.
            CompatError: the server cannot be reached: whether the row was switched is unknown, and
                the next writer finds out.
        """
        if before is None:
            self.table.insert(self.row(after))
        else:
            self.table.swap(self.row(after), expected=self.row(before))

    def row(self, manifest: Manifest) -> DeploymentRow:
        """The row that a generation has."""
        from compatctl.engines import DeploymentRow, search_sql_of, searched_table, side_table_name

        file = table_file(self.root, manifest)
        assert file is not None
        side, ef = file.side, min(manifest.index.ef_search, file.max_ef)
        table, id_column, vector_column = searched_table(file)
        return DeploymentRow(
            epoch=manifest.generation,
            query_model=manifest.query_model,
            model_name=manifest.query_share.name,
            search_table=table,
            id_column=id_column,
            vector_column=vector_column,
            operator=file.operator,
            ef_search=ef,
            calibration=manifest.calibration,
            previous_epoch=manifest.generation - 1 if manifest.generation > 1 else None,
            manifest=manifest_digest(manifest),
            switched_at=manifest.created_at,
            search_sql=search_sql_of(file, ef),
            side_table=side_table_name(file),
            side_batches=() if side is None else side.batches,
        )

    def roll_forward(self, root: Path, current: Manifest) -> Manifest:
        """The generation that the row names; call it under the lock.

        It is ``current``, or the next one, whose commit was killed between the row and
        manifest.json: that commit is completed, with a notice. So is the commit to a bucket that
        was killed between manifest.json and the row.

        Raises:
            ConflictError: the row is of neither.
        """
        row = self.table.read()
        if row is not None and _is_of(row, current):
            return current
        if is_in_bucket(root) and _is_before(row, current):
            self._complete_row(root, row, current)
            return current
        after = self._cut_off(root, current, row)
        if after is None:
            raise ConflictError(
                _difference(self.file, current, row),
                tip="find out which is right: another copy of this store that is further, a "
                "database that was restored, or a row that was deleted; docs/engines.md has what "
                "to do for each",
            )
        require_blobs(root, after)
        write_atomic(root / MANIFEST, manifest_bytes(after))
        told = "its commit had been cut off after the row was switched; it is completed now"
        notice("rolled-forward", shown_path(root), "generations", [str(after.generation)], told)
        return after

    def _complete_row(self, root: Path, row: DeploymentRow | None, current: Manifest) -> None:
        if row is None:
            self.table.insert(self.row(current))
        else:
            self.table.swap(self.row(current), expected=row)
        told = "its commit had been cut off before the row was switched; it is switched now"
        notice("rolled-forward", shown_path(root), "generations", [str(current.generation)], told)

    def _cut_off(self, root: Path, current: Manifest, row: DeploymentRow | None) -> Manifest | None:
        """The generation after ``current``, if the row names it."""
        if row is None or row.epoch != current.generation + 1:
            return None
        try:
            after = read_generation(root, row.epoch)
        except CompatError:
            return None
        fits = after.parent == manifest_digest(current) and _is_of(row, after)
        return after if fits else None

    def problems(self, root: Path, current: Manifest) -> list[str]:
        """How the row differs from the store's generation; nothing is written.

        Raises:
            CompatError: the server cannot be reached.
        """
        row = self.table.read()
        if row is None or not _is_of(row, current):
            problem = _difference(self.file, current, row)
            if is_in_bucket(root) and _is_before(row, current):
                problem += f": a commit was cut off before the row was switched; {_COMPLETES}"
            elif self._cut_off(root, current, row) is not None:
                problem += f": a commit was cut off after the row was switched; {_COMPLETES}"
            return [problem]
        expected = self.row(current)
        told = row.search_sql or expected.search_sql  # a row of an older version has none
        now = replace(row, switched_at="", search_sql=told)
        changed = now != replace(expected, switched_at="")
        elsewhere = self.table.elsewhere()
        problems = ["entries of the row were changed by hand"] if changed else []
        return [*problems, elsewhere] if elsewhere else problems


def _is_of(row: DeploymentRow, manifest: Manifest) -> bool:
    """Whether a row names this generation."""
    return (row.epoch, row.manifest) == (manifest.generation, manifest_digest(manifest))


def _is_before(row: DeploymentRow | None, manifest: Manifest) -> bool:
    """Whether a row is of the generation before, or there is none before the first."""
    if row is None:
        return manifest.generation == 1
    return (row.epoch, row.manifest) == (manifest.generation - 1, manifest.parent)


def _difference(file: TableFile, current: Manifest, row: DeploymentRow | None) -> str:
    where = file.location.row
    if row is None:
        return f"{where} is gone, and the store is at generation {current.generation}"
    other = ", of another manifest" if row.epoch == current.generation else ""
    return (
        f"{where} is at epoch {row.epoch} (model {row.query_model[:12]}{other}), and the store at "
        f"generation {current.generation} (model {current.query_model[:12]})"
    )


def table_file(root: Path, manifest: Manifest) -> TableFile | None:
    """The table that has a generation's rows, or None where an index file has them.

    Raises:
        DamagedError: the file is not readable.
    """
    if manifest.index.kind != "tables":
        return None
    from compatctl.engines import TableFile

    if remote := remote_of(root):
        remote.fetch(manifest.index.kind, manifest.index.sha256)
    return TableFile.read(blob_path(root, manifest.index.kind, manifest.index.sha256))


def engine_switch(root: Path, manifest: Manifest) -> Switch | None:
    """The switch of a generation's engine; None where an index file has the rows."""
    file = table_file(root, manifest)
    return None if file is None else Switch(file=file, root=root)


def row_problems(root: Path, manifest: Manifest) -> list[str]:
    """How an engine's row differs from the generation; empty without an engine."""
    switch = engine_switch(root, manifest)
    return [] if switch is None else switch.problems(root, manifest)


def recover(root: Path) -> None:
    """Complete a commit that was killed between an engine's row and manifest.json, with a notice.

    Raises:
        ConflictError: the row is of another generation, or the store is locked.
        CompatError: the server cannot be reached.
    """
    with Lock(root / LOCK, _WAIT_S, "recovery"):
        current = read_current(root)
        switch = engine_switch(root, current)
        if switch is not None:
            switch.roll_forward(root, current)


def finish_creation(root: Path, table: Deployment) -> None:
    """Complete a creation that was killed after its row was written; call it before another one.

    Raises:
        ConflictError: the store's row is of another generation, or the store is locked.
        CompatError: the server cannot be reached.
    """
    if store_exists(root):
        recover(root)
    if (root / MANIFEST).exists() or not is_regular_file(generation_path(root, 1)):
        return
    with Lock(root / LOCK, _WAIT_S, "recovery"):
        try:
            first = read_generation(root, 1)
        except CompatError:
            return
        row = table.read()
        if row is not None and _is_of(row, first):
            require_blobs(root, first)
            write_atomic(root / MANIFEST, manifest_bytes(first))
            told = "its creation had been cut off after the row was written; it is completed now"
            notice("rolled-forward", root, "generations", ["1"], told)
