"""Reading the rows that hold the values which last changes lack: each file that is needed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from spanvault.merge.history import TableLayer
from spanvault.merge.holes import Holes
from spanvault.merge.index import ChangeIndex
from spanvault.merge.segments import ChangeFile, read_rows, windows
from spanvault.merge.shapes import Projection, key_values
from spanvault.model.manifest import DataFile
from spanvault.model.schema import Table


def find_values(
    index: ChangeIndex,
    table: Table,
    files: Sequence[ChangeFile],
    base: Sequence[tuple[TableLayer, DataFile]] | None,
    directory: Path,
    scratch: Path | None,
) -> Holes:
    """The missing values of all last changes in `files`, from `files` and from the base's files. With `base` None values
    from before `files` stay open.

    Raises Damaged when a value is not where it must be.
    """
    holes = Holes(index, table, directory)
    try:
        wanted = holes.segments()
        for file in files:
            if file.segment in wanted:
                _read_changes(holes, file, _only(table, wanted[file.segment]), scratch)
        if index.truncated_at is not None:
            base = ()
        if base is not None and (attnums := holes.base_attnums()):
            for layer, data in base:
                _read_base(holes, layer, data, _only(table, attnums), scratch)
        holes.check_found(base=base is not None)
    except BaseException:
        holes.close()
        raise
    return holes


def _only(table: Table, attnums: Iterable[int]) -> Table:
    chosen = set(attnums)
    return table.model_copy(update={"columns": tuple(one for one in table.data_columns if one.attnum in chosen)})


def _read_changes(holes: Holes, file: ChangeFile, wanted: Table, scratch: Path | None) -> None:
    projection = Projection(wanted, file.layer.table)
    attnums = [column.attnum for column in wanted.columns]
    for window in windows(read_rows(file.layer, file.file, ["_seq", *projection.columns], scratch)):
        columns = projection.batch(window.select(projection.columns)).columns
        holes.store_changes(file.positions(window), dict(zip(attnums, columns, strict=True)))


def _read_base(holes: Holes, layer: TableLayer, file: DataFile, wanted: Table, scratch: Path | None) -> None:
    projection = Projection(wanted, layer.table)
    attnums = [column.attnum for column in wanted.columns]
    keys = [column.stored_as for column in layer.table.key_columns]
    for window in windows(read_rows(layer, file, list(dict.fromkeys([*keys, *projection.columns])), scratch)):
        columns = projection.batch(window.select(projection.columns)).columns
        parts = key_values([window.column(name) for name in keys], layer.table.key_columns)
        holes.store_base(parts, dict(zip(attnums, columns, strict=True)))
