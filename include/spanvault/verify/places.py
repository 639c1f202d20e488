"""Places of localities that hold nothing of a layer: told once for each, instead of file by file."""

from __future__ import annotations

from collections.abc import Iterator

from spanvault.collection.layout import object_key
from spanvault.collection.parts import absent_parts
from spanvault.model.manifest import Manifest, ObjectReference
from spanvault.model.places import Places, place_name
from spanvault.storage.base import Storage
from spanvault.storage.keys import place_of
from spanvault.storage.where import lacks_place_of
from spanvault.verify.result import Findings


class AbsentPlaces:
    """The localities of which nothing of the layer is in the places given. A place that is not given cannot be looked at;
    one that is given and holds nothing is damage. Both are told to `findings` at once."""

    def __init__(self, data: Storage, manifest: Manifest, findings: Findings) -> None:
        absent = absent_parts(data, manifest)
        self._names = frozenset(place_name(part.locality) for part in absent)
        self._subdir = manifest.subdir
        written = dict(Places.parse(manifest.location or manifest.request.into).others)
        for part in absent:
            key = object_key(manifest.subdir, part.document.path)
            if lacks_place_of(data, key):
                findings.not_given(part.locality, manifest.subdir)
            else:
                origin = f"; they were written to {written[part.locality]}" if part.locality in written else ""
                told = f"{key} and all other files of {part.locality}{origin}"
                findings.fail(f"Not at the URI given: {told}.", missing=told)

    def hold(self, path: str) -> bool:
        """Whether the object at this path of the chain belongs to one of them."""
        return bool(self._names) and place_of(object_key(self._subdir, path)) in self._names

    def without(self, references: Iterator[ObjectReference]) -> Iterator[ObjectReference]:
        """The objects that belong to none of them."""
        return (reference for reference in references if not self.hold(reference.path))
