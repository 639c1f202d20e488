"""What a restore will do, and what it refuses. Pure: manifests, tables' histories and schema archives in, plan out.

The same layers, cut and request give the same plan in any process: steps hand each other nothing but names.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from spanvault.collection.chain import Resolved
from spanvault.database.postgres.archive import Entry
from spanvault.errors import BadInput, NotFound, Refused
from spanvault.merge.history import TableHistory
from spanvault.model.base import Value
from spanvault.model.cut import Cut, format_time
from spanvault.model.manifest import Manifest, ManifestDatabase
from spanvault.model.request import RestoreRequest
from spanvault.model.schema import LARGE_OBJECT_LIST
from spanvault.model.sentences import few
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget
from spanvault.restore.batches import LoadBatch, batches_of, load_units
from spanvault.restore.origin import SHOWN, AtCut, Missing, Origin, TableKey
from spanvault.restore.selective import RELATIONS, select
from spanvault.statement.words import name_text

Archives = Callable[[str], Sequence[Entry]]
Histories = Callable[[Mapping[TableKey, Origin]], Mapping[TableKey, TableHistory]]
Chooser = Callable[[Entry], bool]

# What RESTORE TABLE names: in PostgreSQL, too, sequences are relations.
_NAMED = RELATIONS | {"SEQUENCE"}
_ROOT = re.compile(r"\)\s*PARTITION BY [^;]*;\s*\Z")


class DatabaseRestore(Value):
    """One database of a restore. `whole`: it is made from nothing; else objects are added to an existing one.
    `tables` are the OIDs of tables whose rows are restored, `excluded` of those whose rows are excluded from backups."""

    source: str
    target: str
    whole: bool
    tables: tuple[int, ...]
    excluded: tuple[int, ...] = ()


class RestorePlan(Value):
    """`id` names this restore in its target. `request` has the backup's own path in place of LATEST, and the cut's position
    as its time. `layers` are those that are read, as `first-number`. `rows` are those that the last layer's manifest tells
    (of its end, where the cut lies inside the layer). `notes` say what does not stand at the cut, and what is left out."""

    id: str
    subdir: str
    cut: Cut
    layers: tuple[str, ...]
    request: RestoreRequest
    databases: tuple[DatabaseRestore, ...]
    batches: tuple[LoadBatch, ...]
    rows: int
    notes: tuple[str, ...] = ()

    @property
    def loads(self) -> bool:
        """Whether batches write rows; otherwise they only read and check them."""
        return not self.request.options.schema_only

    @property
    def grants(self) -> bool:
        """Whether owners and privileges come back."""
        return self.request.options.grants or isinstance(self.request.target, ClusterTarget)


def make_plan(
    resolved: Resolved, histories: Histories, request: RestoreRequest, archives: Archives, connected_to: str
) -> RestorePlan:
    """The plan. `histories` gives the histories of tables; `archives` gives the entries of a database's schema archive
    (asked only for schemas and tables); `connected_to` is the database that names without one mean.

    `request` is one that statement.rules.check lets pass. Raises BadInput or NotFound with the reason why the backup cannot
    serve it, Refused when the cut cannot and neither strictness nor an option allows what it can give instead.
    """
    manifest, at_cut, options = resolved.manifest, AtCut(resolved), request.options
    pinned = request.model_copy(update={"subdir": manifest.subdir, "as_of": resolved.cut.lsn})
    gone = tuple(_gone(at_cut, manifest, request, connected_to))
    asked = tuple(_databases(manifest, request, archives, connected_to, gone))
    databases = tuple(_restorable(at_cut, database) for database in asked)
    reads = not options.schema_only or options.verify_backup_table_data
    missing = (*_missing(at_cut, asked), *gone) if reads else ()
    notes = (
        *_left_out(resolved, missing, request),
        *_not_at_cut(resolved, at_cut, databases, request),
        *_not_in_parts(manifest, databases),
        *_without_rows(manifest, databases),
    )
    origins = {(one.source, oid): at_cut.origins[one.source, oid] for one in databases for oid in one.tables}
    # The list of large objects is restored with the schema: pages need the objects.
    read = origins if options.schema_only else {key: one for key, one in origins.items() if key[1] != LARGE_OBJECT_LIST}
    units = tuple(load_units(manifest, histories(read))) if reads else ()
    return RestorePlan(
        id=restore_id(resolved, request),
        subdir=manifest.subdir,
        cut=resolved.cut,
        layers=layers_of(resolved),
        request=pinned,
        databases=databases,
        batches=batches_of(manifest, units, options.workers),
        rows=sum(origin.entry.rows for origin in origins.values()),
        notes=notes,
    )


def _not_in_parts(manifest: Manifest, databases: Sequence[DatabaseRestore]) -> Iterator[str]:
    """What the backup has of a database of which only a part is restored."""
    for database in databases:
        entry = manifest.database(database.source)
        tables = [table for table in entry.database.tables if table.whole_only] if entry and not database.whole else []
        what = ["large objects"] if any(table.of_large_objects for table in tables) else []
        names = sorted({table.extension.name for table in tables if table.extension})
        what += [f"rows of configuration tables ({few(names, SHOWN)})"] if names else []
        if what:
            yield f"Of {database.source} no {' and no '.join(what)} are restored: these come with whole databases only."


def _without_rows(manifest: Manifest, databases: Sequence[DatabaseRestore]) -> Iterator[str]:
    """The tables that are restored empty, by the will of their owner."""
    for database in databases:
        entry = manifest.database(database.source)
        tables = entry.database.tables if entry else ()
        names = [table.qualified for table in tables if table.oid in database.excluded]
        if names:
            yield f"Of {database.source} restored empty, as their rows are excluded from backups: {few(names, SHOWN)}."


def layers_of(resolved: Resolved) -> tuple[str, ...]:
    """The layers that are read, as `first-number`: units are the same only for the same layers."""
    return tuple(f"{layer.manifest.first}-{layer.manifest.number}" for layer in resolved.layers)


def _restorable(at_cut: AtCut, asked: DatabaseRestore) -> DatabaseRestore:
    return asked.model_copy(update={"tables": tuple(oid for oid in asked.tables if (asked.source, oid) in at_cut.origins)})


def _missing(at_cut: AtCut, asked: Sequence[DatabaseRestore]) -> Iterator[Missing]:
    for database in asked:
        keys = ((database.source, oid) for oid in database.tables)
        yield from (at_cut.missing[key] for key in keys if key in at_cut.missing)


def _gone(at_cut: AtCut, manifest: Manifest, request: RestoreRequest, connected_to: str) -> Iterator[Missing]:
    """The tables that the request means and that the last layer has no more."""
    target = request.target
    for table in at_cut.gone:
        if isinstance(target, ClusterTarget):
            yield table
        elif isinstance(target, DatabaseTarget):
            if table.database in target.names:
                yield table
        elif any(
            (_source(manifest, pattern.database, connected_to), pattern.schema_name) == (table.database, table.schema_name)
            and pattern.name in {None, table.name}
            for pattern in _patterns(target)
        ):
            yield table


def _left_out(resolved: Resolved, missing: Sequence[Missing], request: RestoreRequest) -> Iterator[str]:
    if not missing:
        return
    names = few(sorted(map(str, missing)), SHOWN)
    if not request.options.skip_unrestorable_tables:
        raise Refused(
            f"The backup {resolved.manifest.subdir} has no rows as of {resolved.cut} of {names}. Restore to another time, or"
            " leave these rows out with skip_unrestorable_tables."
        )
    yield f"Left out, because there are no rows as of {resolved.cut}: {names}."


def _not_at_cut(
    resolved: Resolved, at_cut: AtCut, databases: Sequence[DatabaseRestore], request: RestoreRequest
) -> Iterator[str]:
    tables = {database.source: database.tables for database in databases}
    elsewhere = "; ".join(at_cut.elsewhere(tables, rows=not request.options.schema_only))
    if elsewhere and request.options.strict:
        raise Refused(
            f"The backup {resolved.manifest.subdir} does not have everything as of {resolved.cut}, and strict takes nothing from"
            f" elsewhere: {elsewhere}. Restore without strict, or to another time."
        )
    if elsewhere:
        yield f"Not everything is as of {resolved.cut}: {elsewhere}."


def chooser(manifest: Manifest, request: RestoreRequest, source: str, connected_to: str) -> Chooser:
    """Which archive entries of the database `source` the request names, which is for schemas or tables."""
    target = request.target
    assert isinstance(target, SchemaTarget | TableTarget)  # noqa: S101 - there is nothing to choose in whole databases
    return _chooser(manifest, target, source, connected_to)


def _databases(
    manifest: Manifest, request: RestoreRequest, archives: Archives, connected_to: str, gone: Sequence[Missing]
) -> Iterator[DatabaseRestore]:
    target = request.target
    if isinstance(target, ClusterTarget):
        if not isinstance(manifest.request.target, ClusterTarget):
            raise BadInput(
                f"The backup {manifest.subdir} is not of a whole cluster, so a cluster cannot be restored from it; it holds"
                f" {_names(manifest)}. Name what to restore: RESTORE DATABASE ... or RESTORE TABLE ..."
            )
        yield from (_whole(one, one.database.name) for one in manifest.databases)
    elif isinstance(target, DatabaseTarget):
        for name in target.names:
            yield _whole(_backed_up_whole(manifest, name), request.options.new_db_name or name)
    else:
        yield from _partial(manifest, request, target, archives, connected_to, gone)


def _whole(database: ManifestDatabase, target: str) -> DatabaseRestore:
    oids = _with_rows(database)
    excluded = tuple(table.oid for table in database.database.tables if table.excluded)
    return DatabaseRestore(source=database.database.name, target=target, whole=True, tables=oids, excluded=excluded)


def _with_rows(database: ManifestDatabase) -> tuple[int, ...]:
    """The tables whose rows belong to the backup, also where the layer has none of them."""
    return tuple(table.oid for table in database.database.tables if table.capture != "none")


def _backed_up_whole(manifest: Manifest, name: str) -> ManifestDatabase:
    found = manifest.database(name)
    if found is None:
        raise NotFound(f"The backup {manifest.subdir} has no database {name!r}; it holds {_names(manifest)}.")
    taken = manifest.request.target
    if not (isinstance(taken, ClusterTarget) or (isinstance(taken, DatabaseTarget) and name in taken.names)):
        raise BadInput(
            f"The backup {manifest.subdir} holds only a part of the database {name!r}, so the database cannot be restored"
            " from it; restore schemas or tables of it into an existing database."
        )
    return found


def _partial(
    manifest: Manifest,
    request: RestoreRequest,
    target: SchemaTarget | TableTarget,
    archives: Archives,
    connected_to: str,
    gone: Sequence[Missing],
) -> Iterator[DatabaseRestore]:
    patterns = _patterns(target)
    refused = {(one.database, one.schema_name, one.name) for one in gone}  # by the sentence that names all such tables
    sources = list(dict.fromkeys(_source(manifest, pattern.database, connected_to) for pattern in patterns))
    if request.options.into_db is not None and len(sources) > 1:
        raise BadInput(f"into_db takes tables of one database, and {', '.join(sources)} are named; restore them one by one.")
    for source in sources:
        entries = archives(source)
        database = manifest.database(source)
        assert database is not None  # noqa: S101 - _source found it
        for pattern in patterns:
            own = _source(manifest, pattern.database, connected_to) == source
            if own and (source, pattern.schema_name, pattern.name) not in refused:
                _check_pattern(manifest, database, pattern, entries, whole_schema=isinstance(target, SchemaTarget))
        chosen = select(entries, _chooser(manifest, target, source, connected_to), grants=False).entries
        empty = {table.oid for table in database.database.tables if table.excluded}
        excluded = tuple(entry.oid for entry in chosen if entry.kind == "TABLE" and entry.oid in empty)
        tables = tuple(_tables_with_rows(database, (one for one in chosen if one.oid not in empty), manifest.subdir))
        into = request.options.into_db or source
        yield DatabaseRestore(source=source, target=into, whole=False, tables=tables, excluded=excluded)


def _patterns(target: SchemaTarget | TableTarget) -> tuple[TablePattern, ...]:
    if isinstance(target, TableTarget):
        return target.patterns
    return tuple(TablePattern(database=database, schema_name=schema) for database, schema in target.names)


def _source(manifest: Manifest, database: str | None, connected_to: str) -> str:
    names = [one.database.name for one in manifest.databases]
    if database is None:
        database = names[0] if len(names) == 1 else connected_to
    if database not in names:
        raise NotFound(f"The backup {manifest.subdir} has no database {database!r}; it holds {', '.join(names)}.")
    return database


def _chooser(manifest: Manifest, target: SchemaTarget | TableTarget, source: str, connected_to: str) -> Chooser:
    patterns = [one for one in _patterns(target) if _source(manifest, one.database, connected_to) == source]
    schemas = {pattern.schema_name for pattern in patterns if pattern.name is None}
    relations = {(pattern.schema_name, pattern.name) for pattern in patterns}
    if isinstance(target, SchemaTarget):
        return lambda entry: entry.schema in schemas or (entry.kind == "SCHEMA" and entry.name in schemas)
    return lambda entry: entry.kind in _NAMED and (entry.schema in schemas or (entry.schema, entry.name) in relations)


def _check_pattern(
    manifest: Manifest, database: ManifestDatabase, pattern: TablePattern, entries: Sequence[Entry], *, whole_schema: bool
) -> None:
    where = f"the database {database.database.name!r} in the backup {manifest.subdir}"
    schema = pattern.schema_name
    named = [(entry.schema or "", entry.name) for entry in entries if entry.kind in _NAMED]
    schemas = ["public", *(entry.name for entry in entries if entry.kind == "SCHEMA")]
    databases = [one.database.name for one in manifest.databases]
    if pattern.name is not None:
        if (schema, pattern.name) not in named:
            hint = _hint(pattern, named, schemas, databases)
            raise NotFound(f"There is no table or view {schema}.{pattern.name} in {where}{hint}.")
        return
    if schema not in schemas:
        raise NotFound(f"There is no schema {schema!r} in {where}{_schema_hint(schema, schemas, databases, whole=whole_schema)}.")
    taken = manifest.request.target
    covers = isinstance(taken, ClusterTarget | DatabaseTarget) or (
        isinstance(taken, SchemaTarget) and any(name == schema for _, name in taken.names)
    )
    if whole_schema and not covers:
        raise BadInput(f"The schema {schema!r} was not backed up whole in {where}; restore tables of it.")
    if not whole_schema and not any(one == schema for one, _ in named):
        raise NotFound(f"There is no table or view in the schema {schema!r} of {where}.")


def _hint(pattern: TablePattern, named: Sequence[tuple[str, str]], schemas: Sequence[str], databases: Sequence[str]) -> str:
    """Names that may have been meant: in other case, in another schema, of a like spelling."""
    schema, name = pattern.schema_name, pattern.name or ""
    if schema in databases and schema not in schemas and pattern.database is None:
        return f"; {schema} is a database: write {_written(schema, 'public', name)}"
    alike = [one for one in named if one[1].lower() == name.lower()]
    shown = {f"{one}.{other}".lower(): _written(one, other) for one, other in named}
    near = difflib.get_close_matches(f"{schema}.{name}".lower(), shown, n=3, cutoff=0.75)
    found = dict.fromkeys([*(_written(*one) for one in alike), *(shown[one] for one in near)])
    return f"; did you mean {' or '.join(list(found)[:3])}" if found else ""


def _schema_hint(schema: str, schemas: Sequence[str], databases: Sequence[str], *, whole: bool) -> str:
    if schema in databases:
        return (
            f"; {schema} is a database: write {'DATABASE ' + name_text(schema) if whole else _written(schema, 'public') + '.*'}"
        )
    by_case = {one.lower(): one for one in schemas}
    near = difflib.get_close_matches(schema.lower(), by_case, n=3)
    return f"; did you mean {' or '.join(name_text(by_case[one]) for one in near)}" if near else ""


def _written(*names: str) -> str:
    return ".".join(map(name_text, names))


def _tables_with_rows(database: ManifestDatabase, chosen: Iterable[Entry], subdir: str) -> Iterator[int]:
    held = set(_with_rows(database))
    for entry in chosen:
        if entry.kind != "TABLE":
            continue
        if entry.oid in held:
            yield entry.oid
        elif not (_ROOT.search(entry.sql) or "CREATE UNLOGGED TABLE" in entry.sql):
            raise NotFound(f"The backup {subdir} does not hold the rows of {entry.display}; it was not among what was backed up.")


def restore_id(resolved: Resolved, request: RestoreRequest) -> str:
    """Equal for what continues an unfinished restore: the same cut of the same backup, to the same place. Where the
    collection lies, which layers give the cut, and how hard to work, may differ."""
    options, manifest = request.options, resolved.manifest
    what = [
        manifest.collection_id, manifest.subdir, str(resolved.cut.lsn), request.target.model_dump(mode="json"),
        options.new_db_name, options.into_db, options.schema_only, options.grants,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _names(manifest: Manifest) -> str:
    return ", ".join(f"{one.database.name} as of {format_time(manifest.end.time)}" for one in manifest.databases)
