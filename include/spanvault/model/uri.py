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

from spanvault.errors import BadInput
from spanvault.model.locality import Locality

REDACTED = "redacted"
DEFAULT_LOCALITY = "default"
SECRET_PARAMETERS = frozenset({"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})
# https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html, the classes that CockroachDB names.
STORAGE_CLASSES = (
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "GLACIER_IR",
)
_S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_S3_VALUES = {
    "AUTH": ("specified", "implicit"),
    "AWS_USE_PATH_STYLE": ("true", "false"),
    "S3_STORAGE_CLASS": STORAGE_CLASSES,
    "AWS_SERVER_ENC_MODE": ("AES256", "aws:kms"),
}
_COMMON = frozenset({"COCKROACH_LOCALITY"})
_PARAMETERS: dict[str, frozenset[str]] = {
    "file": _COMMON,
    "nodelocal": _COMMON,
    "s3": _COMMON | {"AWS_REGION", "AWS_ENDPOINT", "AWS_SERVER_KMS_ID", "conn_id", *_S3_KEYS, *_S3_VALUES},
}
_LATER = frozenset({"gs", "azure", "azure-blob", "azure-storage"})
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SECRET_TEXT = re.compile(r"(?i)\b([A-Z_]*(?:SECRET|TOKEN|PASSWORD|PASSPHRASE|CREDENTIALS|ACCOUNT_KEY)[A-Z_]*=)[^&\s'\"]+")
_USERINFO_TEXT = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^/?#\s'\"@:]*:)[^/?#\s'\"@]+@")


def redact_text(text: str) -> str:
    """`text` with the values of parameters that hold secrets, and passwords in URIs, replaced by `redacted`.

    For text that may hold a URI which does not parse; StorageUri.redacted() is exact.
    """
    return _USERINFO_TEXT.sub(rf"\g<1>{REDACTED}@", _SECRET_TEXT.sub(rf"\g<1>{REDACTED}", text))


@dataclass(frozen=True, repr=False)
class StorageUri:
    """A parsed storage URI. `path` is decoded, `/`-separated, without leading, trailing or doubled slashes and without
    `.` and `..` parts; for `file` it is the absolute path without its first slash. `host` is the bucket for `s3`,
    `self` for `nodelocal`, empty for `file`."""

    scheme: str
    host: str
    path: str
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a URI of a place to back up to or restore from. Raises BadInput, never with a secret in the message."""
        uri = cls._split(text)
        if uri.scheme == "s3":
            uri._check_s3_access()
        return uri

    @classmethod
    def parse_prefix(cls, text: str) -> Self:
        """Read an entry of an allow-list: a URI without credentials (an `s3` one may name its AWS_ENDPOINT).

        Raises BadInput.
        """
        uri = cls._split(text)
        extra = sorted(set(uri.params) - {"AWS_ENDPOINT"})
        if extra:
            raise BadInput(f"An allowed destination takes no parameters but AWS_ENDPOINT; {uri._place} has {', '.join(extra)}.")
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
    def has_inline_secrets(self) -> bool:
        """Whether anybody who reads the URI can use its secrets."""
        return not SECRET_PARAMETERS.isdisjoint(self.params)

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
        _check_scheme(parts.scheme)
        if "@" in parts.netloc:
            raise BadInput(f"A {parts.scheme}:// URI takes no user or password before the host; use its parameters.")
        if parts.fragment:
            raise BadInput(f"The {parts.scheme}:// URI holds a '#'; write it as %23.")
        _check_host(parts.scheme, parts.netloc)
        uri = cls(parts.scheme, parts.netloc, _clean_path(path, f"The {parts.scheme}:// URI"))
        return cls(uri.scheme, uri.host, uri.path, _checked_parameters(pairs, uri.scheme, uri._place))

    def _check_s3_access(self) -> None:
        params, keys = self.params, [name for name in _S3_KEYS if name in self.params]
        if "conn_id" in params:
            if keys or "AUTH" in params:
                raise BadInput(f"{self._place}: conn_id stands instead of AUTH and keys; remove {', '.join(keys) or 'AUTH'}.")
        elif params.get("AUTH") == "implicit":
            if keys:
                raise BadInput(f"{self._place}: AUTH is set to 'implicit', but {keys[0]} is set too; remove one of them.")
        else:
            for name in _S3_KEYS[:2]:
                if name not in params:
                    raise BadInput(
                        f"{self._place}: AUTH is set to 'specified' (the default), but {name} is not set; "
                        "give both keys, AUTH=implicit or conn_id."
                    )


def _check_scheme(scheme: str) -> None:
    if scheme in _LATER:
        raise BadInput(
            f"Storage of the scheme {scheme}:// is not supported yet by this version; use s3://, nodelocal:// or file://."
        )
    if scheme not in _PARAMETERS:
        named = f"the unknown scheme {scheme!r}" if scheme else "no scheme"
        raise BadInput(f"The storage URI has {named}; use s3://bucket/path, nodelocal://self/path or file:///path.")


def _check_host(scheme: str, host: str) -> None:
    if scheme == "file" and host:
        raise BadInput(f"A file:// URI names no host; write file:///path with three slashes, not file://{host}/path.")
    if scheme == "nodelocal" and host != "self":
        raise BadInput(f"nodelocal://{host}/ is not supported yet by this version; use nodelocal://self/path.")
    if scheme == "s3" and not _BUCKET.fullmatch(host):
        raise BadInput(f"The s3:// URI needs a bucket name after the two slashes, not {host!r}.")


def _clean_path(path: str, where: str) -> str:
    parts = [part for part in path.split("/") if part]
    if "\0" in path or {".", ".."} & set(parts):
        raise BadInput(f"{where} has a path with '.', '..' or a NUL character; write the place itself.")
    return "/".join(parts)


def _checked_parameters(pairs: list[tuple[str, str]], scheme: str, where: str) -> tuple[tuple[str, str], ...]:
    names = [name for name, _ in pairs]
    unknown = sorted(set(names) - _PARAMETERS[scheme])
    if unknown:
        hint = "; parameter names are upper case" if any(name.upper() in _PARAMETERS[scheme] for name in unknown) else ""
        raise BadInput(f"{where}: unknown query parameters: {', '.join(unknown)}{hint}.")
    params = dict(pairs)
    for name, value in params.items():
        if names.count(name) > 1 or not value:
            raise BadInput(f"{where}: {name} is {'given twice' if value else 'empty'}.")
        if value not in _S3_VALUES.get(name, (value,)):
            raise BadInput(f"{where}: unsupported value {value!r} for {name}; it may be {', '.join(_S3_VALUES[name])}.")
        if name in SECRET_PARAMETERS:
            # An unencoded + reads as a space. AWS secrets are base64, which has no spaces; CockroachDB repairs it too.
            params[name] = value.replace(" ", "+")
    _check_locality(params.get("COCKROACH_LOCALITY"), where)
    if "AWS_ENDPOINT" in params:
        _check_endpoint(params["AWS_ENDPOINT"], where)
    if (params.get("AWS_SERVER_ENC_MODE") == "aws:kms") != ("AWS_SERVER_KMS_ID" in params):
        raise BadInput(f"{where}: AWS_SERVER_KMS_ID must be set when, and only when, AWS_SERVER_ENC_MODE is aws:kms.")
    return tuple(params.items())


def _check_locality(text: str | None, where: str) -> None:
    if text is not None and text != DEFAULT_LOCALITY and len(Locality.parse(text).tiers) != 1:
        raise BadInput(f'{where}: COCKROACH_LOCALITY must be default or one tier in the form "key=value".')


def _check_endpoint(endpoint: str, where: str) -> None:
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or "@" in parts.netloc or parts.query or parts.fragment:
        raise BadInput(f"{where}: AWS_ENDPOINT must have the form https://host or https://host:port.")
