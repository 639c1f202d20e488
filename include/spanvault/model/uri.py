"""Storage URIs: `scheme://host/path?PARAMETER=value`, with CockroachDB's parameter names, and how to show them.

A URI may carry secrets in its parameters; `str()`, `repr()` and `redacted()` never show them, `revealed()` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from spanvault.errors import BadInput, Refused
from spanvault.model.uri_parameters import (
    ADDRESS_PARAMETERS,
    ARCHIVE_CLASSES,
    DEFAULT_LOCALITY,
    REDACTED,
    SECRET_PARAMETERS,
    STORAGE_CLASSES,
    ObjectLock,
    Role,
    check_access,
    checked_parameters,
    object_lock_of,
    roles_of,
)

__all__ = ["DEFAULT_LOCALITY", "REDACTED", "SECRET_PARAMETERS", "STORAGE_CLASSES", "StorageUri", "redact_text"]

_SCHEMES = frozenset({"file", "nodelocal", "s3", "gs", "azure-blob"})
_ALIASES = {"azure": "azure-blob", "azure-storage": "azure-blob"}
_HOSTS = {
    "s3": (re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}"), "a bucket name"),
    # https://cloud.google.com/storage/docs/buckets#naming
    "gs": (re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"), "a bucket name (lower-case letters, digits, '-', '_' and '.')"),
    # https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
    "azure-blob": (
        re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*"),
        "a container name (3 to 63 lower-case letters, digits and single '-')",
    ),
}
_SECRET_TEXT = re.compile(r"(?i)\b([A-Z_]*(?:SECRET|TOKEN|PASSWORD|PASSPHRASE|CREDENTIALS|ACCOUNT_?KEY)[A-Z_]*=)[^&\s'\"]+")
_USERINFO_TEXT = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/?#\s'\"@:]*:)[^/?#\s'\"@]+@")


def redact_text(text: str) -> str:
    """`text` with the values of parameters that hold secrets, and passwords in URIs, replaced by `redacted`.

    For text that may hold a URI which does not parse; StorageUri.redacted() is exact.
    """
    return _USERINFO_TEXT.sub(rf"\g<1>{REDACTED}@", _SECRET_TEXT.sub(rf"\g<1>{REDACTED}", text))


@dataclass(frozen=True, repr=False)
class StorageUri:
    """A parsed storage URI. `path` is decoded, `/`-separated, without leading, trailing or doubled slashes and without
    `.` and `..` parts; for `file` it is the absolute path without its first slash. `scheme` is `file`, `nodelocal`,
    `s3`, `gs` or `azure-blob` (which `azure` and `azure-storage` become); `host` is the bucket or container, `self` for
    `nodelocal`, empty for `file`."""

    scheme: str
    host: str
    path: str
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URI of a place to back up to or restore from. Raises BadInput, never with a secret in the message."""
        uri = cls._split(text)
        check_access(uri.scheme, uri.params, uri._place)
        return uri

    @classmethod
    def parse_prefix(cls, text: str) -> Self:
        """Read an entry of an allow-list: a URI without credentials, whose parameters say no more than on which servers
        its bucket lies. Raises BadInput."""
        uri = cls._split(text)
        taken = ADDRESS_PARAMETERS.get(uri.scheme, ())
        extra = sorted(set(uri.params) - set(taken))
        if extra:
            but = f" but {', '.join(taken)}" if taken else ""
            raise BadInput(f"An allowed destination takes no parameters{but}; {uri._place} has {', '.join(extra)}.")
        return uri

    @property
    def params(self) -> Mapping[str, str]:
        """The decoded parameters by name, secrets included."""
        return MappingProxyType(dict(self.parameters))

    @property
    def locality(self) -> str | None:
        """COCKROACH_LOCALITY: `default`, one `key=value` tier, or None if the URI does not say."""
        return self.params.get("COCKROACH_LOCALITY")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles (AWS) or service accounts (Google Cloud) of ASSUME_ROLE, in the order in which they are assumed."""
        return roles_of(self.params.get("ASSUME_ROLE", ""))

    @property
    def object_lock(self) -> ObjectLock | None:
        """How new objects are to be protected from deletion, or None."""
        return object_lock_of(self.params)

    @property
    def is_archive(self) -> bool:
        """Whether data written here must be brought back, for hours, before anybody can read it."""
        return self.params.get("S3_STORAGE_CLASS") in ARCHIVE_CLASSES

    def check_extendable(self) -> None:
        """Raise Refused if a chain with data here could not be built upon: validation, compaction and restore read the data
        of every layer. CockroachDB has the same limit for its incremental backups."""
        if self.is_archive:
            name = self.params["S3_STORAGE_CLASS"]
            raise Refused(
                f"{self._place}: a backup that others are built upon cannot lie in the storage class {name}, whose objects "
                "must be brought back before they can be read; use STANDARD, STANDARD_IA or GLACIER_IR, or full backups only."
            )

    @property
    def address(self) -> tuple[tuple[str, str], ...]:
        """The parameters that say on which servers the bucket lies, in a form to be compared."""
        named = ((name, self.params.get(name, "")) for name in ADDRESS_PARAMETERS.get(self.scheme, ()))
        public = {"AZUREPUBLICCLOUD"}
        return tuple((name, value.rstrip("/").lower()) for name, value in named if value and value not in public)

    @property
    def has_inline_secrets(self) -> bool:
        """Whether anybody who reads the URI can use its secrets."""
        return not SECRET_PARAMETERS.isdisjoint(self.params)

    def without_lock(self) -> Self:
        """The same place, where new objects are not to be protected."""
        kept = tuple(pair for pair in self.parameters if not pair[0].startswith("OBJECT_LOCK_"))
        return type(self)(self.scheme, self.host, self.path, kept)

    def join(self, path: str) -> Self:
        """The place `path` below this one, with the same parameters. Raises BadInput for `.` and `..` parts."""
        below = _clean_path(path, self._place)
        return type(self)(self.scheme, self.host, "/".join(filter(None, (self.path, below))), self.parameters)

    def contains(self, other: StorageUri) -> bool:
        """Whether `other` is this place or lies below it, by whole path parts; parameters are not compared."""
        inside = other.path == self.path or not self.path or other.path.startswith(f"{self.path}/")
        return (self.scheme, self.host) == (other.scheme, other.host) and inside

    def redacted(self) -> str:
        """The URI with every secret value replaced by `redacted`."""
        return self._text({name: REDACTED if name in SECRET_PARAMETERS else value for name, value in self.parameters})

    def revealed(self) -> str:
        """The URI with its secrets; parses to an equal value."""
        return self._text(self.params)

    def __str__(self) -> str:
        return self.redacted()

    def __repr__(self) -> str:
        return f"StorageUri({self.redacted()!r})"

    @property
    def _place(self) -> str:
        return f"{self.scheme}://{self.host}/{quote(self.path)}"

    def _text(self, params: Mapping[str, str]) -> str:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in params.items())
        return f"{self._place}?{query}" if query else self._place

    @classmethod
    def _split(cls, text: str) -> Self:
        try:
            if any(ord(character) < 0x20 or character == "\x7f" for character in text):
                raise ValueError
            parts = urlsplit(text)
            path = unquote(parts.path, errors="strict")
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")
        except ValueError:
            raise BadInput("The storage URI cannot be read: it must have the form scheme://host/path?PARAMETER=value.") from None
        scheme = _checked_scheme(parts.scheme)
        if "@" in parts.netloc:
            raise BadInput(f"The {scheme}:// URI takes no user or password before the host; use its parameters.")
        if parts.fragment:
            raise BadInput(f"The {scheme}:// URI holds a '#'; write it as %23.")
        _check_host(scheme, parts.netloc)
        if scheme == "file" and not path.startswith("/"):
            raise BadInput("A file URI names a place from the root of the file system on: write file:///path with three slashes.")
        uri = cls(scheme, parts.netloc, _clean_path(path, f"The {scheme}:// URI"))
        return cls(uri.scheme, uri.host, uri.path, checked_parameters(pairs, uri.scheme, uri._place))


def _checked_scheme(scheme: str) -> str:
    if _ALIASES.get(scheme, scheme) not in _SCHEMES:
        named = f"the unknown scheme {scheme!r}" if scheme else "no scheme"
        raise BadInput(
            f"The storage URI has {named}; use s3://bucket/path, gs://bucket/path, azure-blob://container/path, "
            "nodelocal://self/path or file:///path."
        )
    return _ALIASES.get(scheme, scheme)


def _check_host(scheme: str, host: str) -> None:
    if scheme == "file" and host:
        raise BadInput(f"A file:// URI names no host; write file:///path with three slashes, not file://{host}/path.")
    if scheme == "nodelocal" and host != "self":
        raise BadInput(f"nodelocal://{host}/ is not supported yet by this version; use nodelocal://self/path.")
    if scheme in _HOSTS and not _HOSTS[scheme][0].fullmatch(host):
        raise BadInput(f"The {scheme}:// URI needs {_HOSTS[scheme][1]} after the two slashes, not {host!r}.")


def _clean_path(path: str, where: str) -> str:
    parts = [part for part in path.split("/") if part]
    if "\0" in path or {".", ".."} & set(parts):
        raise BadInput(f"{where} has a path with '.', '..' or a NUL character; write the place itself.")
    return "/".join(parts)
