"""What the manifests of a chain's layers must say of each other, beyond digests and contiguity."""

from __future__ import annotations

from collections.abc import Sequence

from spanvault.collection.chain import Layer, OpenLocation, compacted_layers, layer_at, original_layers
from spanvault.collection.layout import manifest_key
from spanvault.collection.manifests import any_names
from spanvault.collection.markers import read_marker
from spanvault.model.manifest import Manifest, ManifestDatabase, ManifestTable
from spanvault.storage.base import Storage
from spanvault.verify.result import Findings


def layers_to_check(
    storage: Storage, subdir: str, number: int | None, open_location: OpenLocation, findings: Findings
) -> tuple[Layer, ...]:
    """The layers to look at: layer `number`, or all valid ones of the chain, original and compacted. What their manifests
    say is checked; a marker is a note. Raises as `resolve` does."""
    if number is not None:
        layer = layer_at(storage, subdir, number, open_location=open_location)
        _check_lists(layer.manifest, findings)
        return (layer,)
    note_marker(storage, subdir, findings)
    originals = original_layers(storage, subdir, open_location=open_location)
    compacted = compacted_layers(storage, subdir, open_location=open_location)
    for layer in (*originals, *compacted):
        _check_lists(layer.manifest, findings)
        _check_bases(layer.manifest, [each.manifest for each in originals], findings)
    return (*originals, *compacted)


def note_marker(storage: Storage, subdir: str, findings: Findings) -> None:
    """Tell of the layer from which on the chain is not used."""
    marked = any_names(storage, subdir).marked
    if marked:
        reason = read_marker(storage, subdir, marked[0]).reason
        findings.note(f"Layer {marked[0]} of {subdir} is marked invalid, so it and what follows is not used: {reason}")


def _check_lists(manifest: Manifest, findings: Findings) -> None:
    """A layer with revision history lists the transactions of each database."""
    for entry in manifest.databases:
        if manifest.revision_history and not manifest.compacted and entry.window.transactions and entry.commits is None:
            key = manifest_key(manifest.subdir, manifest.number, manifest.first)
            findings.fail(f"{key} names no list of the {entry.window.transactions} transactions of {entry.database.name!r}.")


def _check_bases(manifest: Manifest, originals: Sequence[Manifest], findings: Findings) -> None:
    """Every table is held whole by its basis."""
    for entry in manifest.databases:
        for table in entry.tables:
            if table.basis is not None and not _is_basis(table, entry, manifest, originals):
                key = manifest_key(manifest.subdir, manifest.number, manifest.first)
                findings.fail(
                    f"{key} says that layer {table.basis} holds the table {table.oid} of {entry.database.name!r} whole, and"
                    " that layer does not."
                )


def _is_basis(table: ManifestTable, entry: ManifestDatabase, manifest: Manifest, originals: Sequence[Manifest]) -> bool:
    if table.basis is None or not 0 <= table.basis <= manifest.number:
        return False
    basis = originals[table.basis]
    there = next((each for each in basis.databases if each.database.oid == entry.database.oid), None)
    held = next((each for each in there.tables if each.oid == table.oid), None) if there is not None else None
    # Read whole behind the layer's end, a table is no part of the state there; the next layer then builds upon it.
    return held is not None and held.basis in {None, basis.number}
