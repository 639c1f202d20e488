"""Which rows a cut gives: every kind of table before, at and behind each kind of position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from spanvault.collection.chain import Layer, Resolved
from spanvault.errors import Damaged, Refused
from spanvault.merge.history import TableHistory
from spanvault.model.cut import Cut, Lsn
from spanvault.model.manifest import Manifest, ManifestDatabase, ManifestTable, ObjectReference, SourceIdentity, Totals
from spanvault.model.request import BackupRequest, RestoreOptions, RestoreRequest
from spanvault.model.schema import Column, Database, Fingerprint, SequenceValue, Table
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget, Target
from spanvault.restore.origin import AtCut
from spanvault.restore.plan import RestorePlan, make_plan, restore_id
from spanvault.storage.local import LocalStorage
from tests.kit.collections import PROTECTION

MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
OBJECT = ObjectReference(path="x", sha256="0" * 64, bytes=1)
WHOLE = DatabaseTarget(names=("shop",))
SEQUENCES = (SequenceValue(schema_name="public", name="numbers", last_value=7, is_called=True),)


def cut(position: int) -> Cut:
    """The cut at a position, whose time is as many seconds after midnight."""
    return Cut(lsn=Lsn(position), time=MIDNIGHT + timedelta(seconds=position))


def shape(oid: int, *names: str, capture: Any = "log", version: str = "") -> Table:
    """The table `t<oid>` with these text columns; its key is the first."""
    columns = tuple(
        Column(attnum=number, name=name, type_oid=25, type_name="text", typmod=-1, base_type="text", type_kind="b")
        for number, name in enumerate(names or ("id", "note"), start=1)
    )
    key = (1,) if capture == "log" else ()
    return Table(
        oid=oid, schema_name="public", name=f"t{oid}", columns=columns, key=key, capture=capture, attributes_version=version
    )


@dataclass(frozen=True)
class Held:
    """A table as a layer holds it."""

    table: Table
    since: int
    as_of: int | None = None
    basis: int | None = 0
    proof: int | None = None

    def entry(self, end: int) -> ManifestTable:
        proof = Fingerprint(rows=1, hash="1", lsn=Lsn(self.proof)) if self.proof is not None else None
        as_of = Lsn(end if self.as_of is None else self.as_of)
        return ManifestTable(
            oid=self.table.oid, rows=1, bytes=1, as_of=as_of, basis=self.basis, since=Lsn(self.since), fingerprint=proof
        )


def layer(
    number: int,
    start: int,
    end: int,
    *held: Held,
    captured: int | None = None,
    catalogs: str = "c",
    sequences: tuple[SequenceValue, ...] = SEQUENCES,
    first: int | None = None,
) -> Manifest:
    """The manifest of a layer of the database `shop`."""
    read = end if captured is None else captured
    tables = tuple(one.table for one in held)
    database = Database(name="shop", oid=1, encoding="UTF8", collate="C", ctype="C", owner="o", tables=tables)
    entry = ManifestDatabase(
        database=database,
        protection=PROTECTION,
        captured=Lsn(read),
        catalogs=catalogs,
        types_version="0",
        schema_dump=OBJECT,
        tables=tuple(one.entry(end) for one in held),
        sequences=sequences,
    )
    whole = number == 0 or first == 0
    return Manifest(
        kind="full" if whole else "incremental",
        number=number,
        first=number if first is None else first,
        subdir="2026/11/22-000000.00",
        collection_id="id",
        run_key="run",
        request=BackupRequest(into="file:///backups", target=WHOLE),
        request_text="BACKUP",
        source=SourceIdentity(cluster="main", system_identifier="1", timeline=1, server_version="18.1"),
        revision_history=not whole,
        start=cut(end if whole else start),
        end=cut(end),
        captured=cut(read),
        databases=(entry,),
        files=OBJECT,
        totals=Totals(tables=1, rows=1, file_bytes=1, files=1, source_bytes=1),
        planned_at=MIDNIGHT,
        committed_at=MIDNIGHT,
    )


def resolved(*manifests: Manifest, inner: int | None = None) -> Resolved:
    """The layers' end, or the position `inner` inside the last."""
    storage = LocalStorage(Path("/nowhere"), "file:///nowhere")
    layers = tuple(Layer(one, "", storage) for one in manifests)
    if inner is None:
        return Resolved(layers, None, manifests[-1].end, inner=False)
    return Resolved(layers, manifests[-2], cut(inner), inner=True)


def plan(of: Resolved, target: Target = WHOLE, **options: Any) -> RestorePlan:
    request = RestoreRequest(target=target, collection="file:///backups", options=RestoreOptions(**options))
    histories = {key: TableHistory(origin.table, ()) for key, origin in AtCut(of).origins.items()}
    return make_plan(of, lambda origins: {key: histories[key] for key in origins}, request, lambda _: (), "shop")


def why(of: Resolved) -> dict[int, str]:
    """The tables that have no rows there, and why."""
    return {oid: missing.why for (_, oid), missing in AtCut(of).missing.items()}


LOGGED = Held(shape(1), since=100)


def test_at_a_manual_backups_end_all_stands_there() -> None:
    end = resolved(layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED, Held(shape(2, capture="exact"), 200, 200, 1)))
    assert plan(end, strict=True).notes == ()
    assert plan(end).databases[0].tables == (1, 2)


def test_a_scheduled_backups_end_says_what_was_read_later_and_strict_refuses_it() -> None:
    read, joined = Held(shape(2, capture="exact"), 250, 250, 1), Held(shape(3), 250, 250, 1)
    end = resolved(layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED, read, joined, captured=250))
    made = plan(end)
    assert made.databases[0].tables == (1, 2, 3)
    (note,) = made.notes
    assert note == (
        "Not everything is as of 0/000000C8 (2026-11-22 00:03:20.000000+00): public.t2, public.t3 as of 0/000000FA"
        " (2026-11-22 00:04:10.000000+00); schema and sequences of shop as of 0/000000FA (2026-11-22 00:04:10.000000+00)."
    )
    with pytest.raises(Refused, match=r"strict takes nothing from elsewhere: public\.t2, public\.t3 as of 0/000000FA"):
        plan(end, strict=True)


def test_many_names_are_counted() -> None:
    read = [Held(shape(number, capture="exact"), 250, 250, 1) for number in range(10, 18)]
    (note,) = plan(resolved(layer(0, 0, 100), layer(1, 100, 200, *read, captured=250))).notes
    assert "public.t14 and 3 more as of" in note


def test_a_table_without_a_basis_is_refused_or_left_out() -> None:
    end = resolved(layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED, Held(shape(4), 250, basis=None)))
    with pytest.raises(
        Refused, match=r"no rows as of 0/000000C8 .* of public\.t4 \(restorable from 0/000000FA\)\. .*skip_unrest"
    ):
        plan(end)
    made = plan(end, skip_unrestorable_tables=True)
    assert made.databases[0].tables == (1,)
    assert made.notes[0].startswith("Left out, because there are no rows as of 0/000000C8")
    assert "public.t4 (restorable from 0/000000FA)" in made.notes[0]
    assert plan(end, schema_only=True).notes == ()


@pytest.mark.parametrize("capture", ["log", "exact"])
@pytest.mark.parametrize("inner", [None, 150])
def test_a_table_whose_reading_was_put_off_names_no_position_to_restore_it_from(inner: int | None, capture: str) -> None:
    put_off = Held(shape(4, capture=capture), 0, 200, basis=None)
    cut = resolved(layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED, put_off), inner=inner)
    assert why(cut)[4].startswith("its reading was put off at 0/000000C8")


@pytest.mark.parametrize(
    ("name", "held", "reason"),
    [
        ("introduced", Held(shape(2), 180, basis=1), "restorable from 0/000000B4"),
        ("renamed column", Held(shape(2, "id", "text"), 100), "columns or key changed meanwhile; restorable from 0/000000C8 ("),
        ("added column", Held(shape(2, "id", "note", "more"), 100), "restorable from 0/000000C8 ("),
        ("lost its key", Held(shape(2, capture="exact"), 200, 200, 1), "columns or key changed"),
    ],
    ids=["introduced", "renamed_column", "added_column", "lost_key"],
)
def test_inside_a_layer_a_table_that_changed_meanwhile_has_no_rows(name: str, held: Held, reason: str) -> None:
    before = () if name == "introduced" else (Held(shape(2), 100),)
    inner = resolved(layer(0, 0, 100, LOGGED, *before), layer(1, 100, 200, LOGGED, held), inner=150)
    assert reason in why(inner)[2]
    assert AtCut(inner).origins[("shop", 1)].as_of == 150
    whole = resolved(layer(0, 0, 100, LOGGED, *before), layer(1, 100, 200, LOGGED, held))
    assert why(whole) == {}


def test_inside_a_layer_columns_altered_and_altered_back_do_no_harm() -> None:
    before, after = Held(shape(2, version="a"), 100), Held(shape(2, version="b"), 100)
    assert why(resolved(layer(0, 0, 100, before), layer(1, 100, 200, after), inner=150)) == {}


def test_a_shape_is_known_only_between_readings_on_both_sides_of_the_cut() -> None:
    """The layer before was read behind the cut: the change may have come before that and after the cut."""
    old, new = Held(shape(2), 100), Held(shape(2, "id", "note", "more"), 100)
    chain = (layer(0, 0, 100, old), layer(1, 100, 200, new, captured=260), layer(2, 200, 300, new))
    assert "changed meanwhile" in why(resolved(*chain, inner=250))[2]
    assert why(resolved(*chain, inner=270)) == {}


def test_a_reading_behind_the_cut_says_nothing_of_it_when_those_before_were_compacted_with_it() -> None:
    read = layer(1, 100, 200, LOGGED, captured=260)
    last = layer(2, 200, 300, LOGGED)
    compacted = layer(1, 0, 200, LOGGED, captured=260, first=0)
    original = resolved(layer(0, 0, 100, LOGGED), read, last, inner=250)
    assert why(original) == {}
    assert plan(original, strict=True).notes == ()
    end = "0/0000012C (2026-11-22 00:05:00.000000+00)"
    left = resolved(compacted, last, inner=250)
    assert why(left) == {1: f"no reading at or before it is left that tells its columns; restorable from {end}"}
    assert f"schema and sequences of shop as of {end}" in plan(left, skip_unrestorable_tables=True).notes[-1]
    assert plan(resolved(compacted, last, inner=270), strict=True).notes == ()


@pytest.mark.parametrize("grown", [("id", "note"), ("id", "note", "more")])
def test_columns_that_only_grew_need_a_reading_from_before_them(grown: tuple[str, ...]) -> None:
    def since(manifest: Manifest, position: int) -> Manifest:
        """The DDL log tells since when the table has its columns."""
        (entry,) = manifest.databases
        known = entry.model_copy(
            update={"tables": tuple(one.model_copy(update={"shape_since": position}) for one in entry.tables)}
        )
        return manifest.model_copy(update={"databases": (known,)})

    last = since(layer(2, 200, 300, Held(shape(1, "id", "note", "more"), since=100)), 255)
    read = Held(shape(1, *grown), since=100)
    compacted = layer(1, 0, 200, read, captured=260, first=0)
    assert set(why(resolved(compacted, last, inner=250))) == {1}
    assert why(resolved(layer(0, 0, 100, read), layer(1, 100, 200, read, captured=260), last, inner=250)) == {}


def of_the_cluster(of: Resolved) -> Resolved:
    """The same layers, as backups of the whole cluster."""
    taken = BackupRequest(into="file:///backups", target=ClusterTarget())
    return replace(
        of, layers=tuple(replace(one, manifest=one.manifest.model_copy(update={"request": taken})) for one in of.layers)
    )


def test_a_dropped_table_is_named_with_the_last_end_that_has_it() -> None:
    inner = resolved(layer(0, 0, 100, LOGGED, Held(shape(2), 100)), layer(1, 100, 200, LOGGED), inner=150)
    gone = r"public\.t2 \(gone afterwards; restorable up to 0/00000064 \("
    with pytest.raises(Refused, match=gone):
        plan(inner)
    with pytest.raises(Refused, match=gone):
        plan(inner, TableTarget(patterns=(TablePattern(name="t2"),)), into_db="x")
    with pytest.raises(Refused, match=gone):
        plan(inner, SchemaTarget(names=((None, "public"),)), into_db="x")
    with pytest.raises(Refused, match=gone):
        plan(of_the_cluster(inner), ClusterTarget())
    assert "public.t2" in plan(inner, skip_unrestorable_tables=True).notes[0]
    end = resolved(layer(0, 0, 100, LOGGED, Held(shape(2), 100)), layer(1, 100, 200, LOGGED))
    assert plan(end).notes == ()


EXACT = shape(2, capture="exact")


@pytest.mark.parametrize(
    ("before", "after", "position", "number"),
    [
        (Held(EXACT, 100, 100), Held(EXACT, 200, 200, 1), 100, 0),
        (Held(EXACT, 40, 100), Held(EXACT, 40, 200), 100, 0),
        (Held(EXACT, 40, 40), Held(EXACT, 40, 120), 120, 1),
    ],
    ids=["read_again", "found_unchanged", "found_unchanged_before_the_cut"],
)
def test_inside_a_layer_a_keyless_table_is_of_the_newest_reading_before_the_cut(
    before: Held, after: Held, position: int, number: int
) -> None:
    inner = resolved(layer(0, 0, 100, before), layer(1, 100, 200, after), inner=150)
    origin = AtCut(inner).origins[("shop", 2)]
    assert (origin.as_of, origin.number) == (position, number)
    assert f"public.t2 as of {Lsn(position)}" in plan(inner).notes[0]
    with pytest.raises(Refused, match=r"public\.t2 as of"):
        plan(inner, strict=True)


def test_a_keyless_table_is_never_of_a_reading_behind_the_cut() -> None:
    read = [Held(EXACT, position, position, number) for number, position in enumerate((100, 260, 300))]
    chain = (layer(0, 0, 100, read[0]), layer(1, 100, 200, read[1], captured=260), layer(2, 200, 300, read[2]))
    assert AtCut(resolved(*chain, inner=250)).origins[("shop", 2)].as_of == 100
    alone = (layer(0, 0, 100), layer(1, 100, 200, read[1], captured=260), layer(2, 200, 300, read[2]))
    later = {2: "restorable from 0/0000012C (2026-11-22 00:05:00.000000+00)"}
    assert why(resolved(*alone, inner=250)) == later
    compacted = layer(1, 0, 200, read[1], captured=260, first=0)  # the originals' earlier readings are not in it
    assert why(resolved(compacted, chain[2], inner=250)) == later


def skipping(manifest: Manifest) -> Manifest:
    """The layer as one that leaves tables without identity out."""
    options = manifest.request.options.model_copy(update={"without_identity": "skip"})
    return manifest.model_copy(update={"request": manifest.request.model_copy(update={"options": options})})


@pytest.mark.parametrize("inner", [None, 250])
def test_a_table_that_a_layer_leaves_out_has_no_rows_there(inner: int | None) -> None:
    chain = layer(0, 0, 100, LOGGED, Held(EXACT, 100, 100)), layer(1, 100, 200, LOGGED, Held(EXACT, 200, 200, 1))
    last = skipping(layer(2, 200, 300, LOGGED, Held(EXACT, 300, 300, None)))
    left_out = "left out by without_identity = 'skip'; restorable up to 0/000000C8 (2026-11-22 00:03:20.000000+00)"
    assert why(resolved(*chain, last, inner=inner)) == {2: left_out}
    assert why(resolved(skipping(layer(0, 0, 300, LOGGED, Held(EXACT, 300, 300, None))))) == {2: left_out.partition(";")[0]}


def test_a_table_that_a_manifest_describes_and_says_nothing_of_has_no_rows() -> None:
    """Early versions wrote no entry for a table that they left out; it must not come back empty."""
    full, bare = layer(0, 0, 100, LOGGED, Held(EXACT, 100, 100)), layer(1, 100, 200, LOGGED, Held(EXACT, 200, 200, 1))
    (entry,) = bare.databases
    early = skipping(bare.model_copy(update={"databases": (entry.model_copy(update={"tables": entry.tables[:1]}),)}))
    with pytest.raises(Refused, match=r"no rows as of .* of public\.t2 \(left out by without_identity = 'skip'; restorable up"):
        plan(resolved(full, early))
    assert plan(resolved(full, early), skip_unrestorable_tables=True).databases[0].tables == (1,)


def test_rows_of_a_table_that_the_manifest_does_not_describe_are_damage_and_not_left_out() -> None:
    """docs/format.md, ManifestTable: `oid` is of a table of the manifest's database."""
    whole = layer(0, 0, 100, LOGGED, Held(shape(2), 100))
    (entry,) = whole.databases
    described = entry.database.model_copy(update={"tables": entry.database.tables[:1]})
    cut_off = whole.model_copy(update={"databases": (entry.model_copy(update={"database": described}),)})
    with pytest.raises(
        Damaged, match=r"layer 0 of the backup 2026/11/22-000000\.00 does not describe .* OID 2 of database 'shop'"
    ):
        plan(resolved(cut_off))


def test_inside_a_layer_schema_and_sequences_that_did_not_change_stand_at_the_cut() -> None:
    def inner(**changes: Any) -> Sequence[str]:
        return plan(resolved(layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED, **changes), inner=150)).notes

    assert inner() == ()
    moved = (replace_sequence(8),)
    assert "sequences of shop as of 0/000000C8" in inner(sequences=moved)[0]
    assert "schema of shop as of 0/000000C8" in inner(catalogs="d")[0]
    assert "schema and sequences of shop" in inner(catalogs="d", sequences=moved)[0]


def replace_sequence(value: int) -> SequenceValue:
    return SEQUENCES[0].model_copy(update={"last_value": value})


def test_only_what_is_restored_is_spoken_of() -> None:
    read = Held(shape(2, capture="exact"), 250, 250, 1)
    end = resolved(layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED, read, captured=250))
    assert AtCut(end).elsewhere({"shop": [1]}, rows=True) == (
        "schema and sequences of shop as of 0/000000FA (2026-11-22 00:04:10.000000+00)",
    )
    assert plan(end, schema_only=True).notes[0].count(";") == 0


@pytest.mark.parametrize(
    ("held", "inner", "counts"),
    [
        (Held(shape(1), 100, proof=200), None, True),
        (Held(shape(1), 100, proof=190), None, False),
        (Held(shape(1), 100, proof=200), 150, False),
        (Held(EXACT, 40, 200, proof=40), None, True),
        (Held(shape(1), 250, 250, 1, proof=250), None, True),
        (Held(shape(1), 100), None, False),
    ],
    ids=["at_the_cut", "before_it", "behind_it", "of_the_reading", "of_a_later_reading", "none"],
)
def test_a_fingerprint_counts_where_it_stands(held: Held, inner: int | None, counts: bool) -> None:
    before = replace(held, since=min(held.since, 100), as_of=None, basis=0, proof=None)
    at_cut = AtCut(resolved(layer(0, 0, 100, before), layer(1, 100, 200, held), inner=inner))
    assert (at_cut.fingerprint(("shop", held.table.oid)) is not None) == counts


def test_a_fulls_fingerprint_of_shortly_before_its_cut_counts() -> None:
    held = Held(shape(1), 100, proof=90)
    assert AtCut(resolved(layer(0, 0, 100, held))).fingerprint(("shop", 1)) is not None
    compacted = layer(1, 0, 100, held, first=0)
    assert AtCut(resolved(compacted)).fingerprint(("shop", 1)) is None


def test_a_restore_is_the_same_from_other_layers_and_another_at_another_cut() -> None:
    chain = (layer(0, 0, 100, LOGGED), layer(1, 100, 200, LOGGED), layer(2, 200, 300, LOGGED))
    one = plan(resolved(*chain))
    compacted = plan(resolved(layer(1, 0, 200, LOGGED, first=0), chain[2]))
    assert one.layers == ("0-0", "1-1", "2-2")
    assert compacted.layers == ("0-1", "2-2")
    assert compacted.id == one.id == restore_id(resolved(*chain), one.request)
    assert plan(resolved(*chain, inner=250)).id != one.id
    assert plan(resolved(*chain, inner=250)).request.as_of == Lsn(250)
