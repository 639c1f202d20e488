"""URIs of keys in key services, with CockroachDB's forms and parameter names, and how to show them.

::

    aws:///KEY?REGION=r&...                                         KEY: id, ARN or alias/name; also aws-kms:///
    gs:///projects/P/locations/L/keyRings/R/cryptoKeys/K?...        also gcp-kms:///
    azure-kms:///KEY/VERSION?AZURE_VAULT_NAME=v&...

https://www.cockroachlabs.com/docs/stable/take-and-restore-encrypted-backups; conn_id is our own: it names a connection
that stands instead of AUTH and keys. `str()`, `repr()` and `redacted()` never show a secret, `revealed()` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from spanvault.errors import BadInput
from spanvault.model.uri_parameters import (
    AZURE_ENVIRONMENTS,
    REDACTED,
    SECRET_PARAMETERS,
    Role,
    check_endpoint,
    check_key_file,
    check_one_way,
    check_roles,
    roles_of,
)

AWS, GOOGLE, AZURE = "aws", "gs", "azure-kms"
_SCHEMES = {"aws": AWS, "aws-kms": AWS, "gs": GOOGLE, "gcp-kms": GOOGLE, "azure-kms": AZURE}
_CREDENTIALS = {
    AWS: ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    GOOGLE: ("CREDENTIALS",),
    AZURE: ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"),
}
# What belongs to the key's address, whoever asks.
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
_ADDRESS = {AWS: ("REGION", "AWS_ENDPOINT"), GOOGLE: (), AZURE: ("AZURE_VAULT_NAME", "AZURE_ENVIRONMENT")}
_ROLES = {AWS: ("ASSUME_ROLE",), GOOGLE: ("ASSUME_ROLE",), AZURE: ()}
_VALUES = {"AUTH": ("specified", "implicit"), "AZURE_ENVIRONMENT": AZURE_ENVIRONMENTS}
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")
# https://docs.aws.amazon.com/kms/latest/developerguide/concepts.html#key-id
_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):\d{12}:(?P<resource>(?:key|alias)/.+)")
_AWS_RESOURCE = re.compile(r"(?:key/)?(?P<id>[A-Za-z0-9-]+)|(?P<alias>alias/[A-Za-z0-9/_-]+)")
# https://cloud.google.com/kms/docs/resource-hierarchy; a project's id may begin with a domain: example.com:project
_GOOGLE_KEY = re.compile(
    r"projects/[a-z0-9][a-z0-9.:-]*/locations/[a-z0-9-]+/keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/[A-Za-z0-9_-]{1,63}"
)
# https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates#vault-name-and-object-name
_AZURE_KEY = re.compile(r"[A-Za-z0-9-]{1,127}/[0-9A-Fa-f]{32}")
_VAULT = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,22}[A-Za-z0-9]")
_FORMS = {
    AWS: "aws:///<key id, ARN or alias/name>",
    GOOGLE: "gs:///projects/<project>/locations/<location>/keyRings/<ring>/cryptoKeys/<key>",
    AZURE: "azure-kms:///<key>/<version of 32 hexadecimal digits>",
}


@dataclass(frozen=True, repr=False)
class KmsUri:
    """The parsed URI of a key. `scheme` is `aws`, `gs` or `azure-kms`; `key` is the decoded path without its first slash."""

    scheme: str
    key: str
    parameters: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a key's URI. Raises BadInput, never with a secret in the message."""
        if not text.strip():
            raise BadInput(f"The KMS URI is empty; give that of a key, such as {_FORMS[AWS]}?REGION=<region>, or leave kms out.")
        try:
            parts = urlsplit(text)
            key = unquote(parts.path, errors="strict").removeprefix("/")
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")
        except ValueError:
            raise BadInput("The KMS URI cannot be read: it must have the form scheme:///key?PARAMETER=value.") from None
        if parts.scheme not in _SCHEMES:
            named = f"the unknown scheme {parts.scheme!r}" if parts.scheme else "no scheme"
            raise BadInput(f"The KMS URI has {named}; use aws:///, gs:/// or azure-kms:///.")
        scheme = _SCHEMES[parts.scheme]
        if parts.netloc or parts.fragment:
            raise BadInput(
                f"The {parts.scheme}:/// URI must have three slashes before the key, no host and no '#': {_FORMS[scheme]}."
            )
        _check_key(scheme, key)
        uri = cls(scheme, key, _checked(scheme, pairs, f"{scheme}:///{key}"))
        uri._check_parameters()
        return uri

    @property
    def params(self) -> Mapping[str, str]:
        """The decoded parameters by name, secrets included."""
        return MappingProxyType(dict(self.parameters))

    @property
    def roles(self) -> tuple[Role, ...]:
        """The chain of roles (service accounts on Google Cloud) to assume, in this order; the last one uses the key."""
        return roles_of(self.params.get("ASSUME_ROLE", ""))

    @property
    def has_inline_secrets(self) -> bool:
        """Whether anybody who reads the URI can use its secrets."""
        return not SECRET_PARAMETERS.isdisjoint(self.params)

    @property
    def place(self) -> str:
        """The URI without whatever says who uses the key: no AUTH, keys, roles and conn_id."""
        return self._text({name: value for name, value in sorted(self.parameters) if name in _ADDRESS[self.scheme]})

    @property
    def key_id(self) -> str:
        """What two URIs of the same key have in common, whatever their credentials.

        A multi-region key of AWS is one key in all its regions, since each unwraps what another wrapped. An alias is
        known by its name only: which key it stands for may change.
        """
        if self.scheme == AWS:
            resource = self._aws_resource
            name = resource["alias"] or f"key/{resource['id']}"
            return f"aws:{name}" if name.startswith("key/mrk-") else f"aws:{self.params['REGION']}:{name}"
        if self.scheme == GOOGLE:
            return f"gs:{self.key}"
        # Vaults and keys are found in any case.
        environment = self.params.get("AZURE_ENVIRONMENT", AZURE_ENVIRONMENTS[0])
        return f"azure-kms:{environment}/{self.params['AZURE_VAULT_NAME']}/{self.key}".lower()

    def redacted(self) -> str:
        """The URI with every secret value replaced by `redacted`."""
        return self._text({name: REDACTED if name in SECRET_PARAMETERS else value for name, value in self.parameters})

    def revealed(self) -> str:
        """The URI with its secrets; parses to an equal value."""
        return self._text(self.params)

    def __str__(self) -> str:
        return self.redacted()

    def __repr__(self) -> str:
        return f"KmsUri({self.redacted()!r})"

    @property
    def _aws_resource(self) -> Mapping[str, str | None]:
        arn = _ARN.fullmatch(self.key)
        found = _AWS_RESOURCE.fullmatch(arn["resource"] if arn else self.key)
        return found.groupdict() if found else {}

    def _text(self, params: Mapping[str, str]) -> str:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in params.items())
        return f"{self.scheme}:///{quote(self.key, safe='/:')}" + (f"?{query}" if query else "")

    def _check_parameters(self) -> None:
        params, where = self.params, f"{self.scheme}:///{self.key}"
        keys = _CREDENTIALS[self.scheme]
        needed = keys[:2] if self.scheme == AWS else keys
        check_one_way(params, keys, needed, f"give {' and '.join(needed)}, AUTH=implicit or conn_id", where)
        check_roles(params.get("ASSUME_ROLE"), self.scheme, where)
        if self.scheme == AWS:
            _check_aws(self.key, params, where)
        elif self.scheme == GOOGLE and params.get("CREDENTIALS", REDACTED) != REDACTED:
            check_key_file(params["CREDENTIALS"], where)
        elif self.scheme == AZURE and not _VAULT.fullmatch(params.get("AZURE_VAULT_NAME", "")):
            raise BadInput(f"{where}: AZURE_VAULT_NAME must be set to the vault's name: 3 to 24 letters, digits and hyphens.")


def check_not_in_the_clear(endpoint: str, what: str) -> None:
    """Raise BadInput, which calls it `what`, for an endpoint to which the data key itself would travel for all to read."""
    parts = urlsplit(endpoint)
    if parts.scheme == "http" and parts.hostname not in _THIS_MACHINE:
        raise BadInput(f"{what} must be https: the data key would travel in the clear.")


def key_service_of(entry: str) -> str | None:
    """The endpoint of an allow-list's entry for a key service, as `same_address` has it; None for an entry of another kind.
    Raises BadInput for one that says less or more."""
    parts = urlsplit(entry)
    if _SCHEMES.get(parts.scheme) not in {AWS, AZURE}:
        return None
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if _SCHEMES[parts.scheme] != AWS or parts.netloc or parts.path.strip("/") or [name for name, _ in pairs] != ["AWS_ENDPOINT"]:
        raise BadInput("An allowed key service must have the form aws-kms:///?AWS_ENDPOINT=<endpoint>, without a key.")
    check_endpoint(pairs[0][1], "AWS_ENDPOINT", "https://host or https://host:port", "An allowed key service")
    return same_address(pairs[0][1])


def same_address(endpoint: str) -> str:
    """An endpoint in a form to be compared."""
    return endpoint.rstrip("/").lower()


def _check_key(scheme: str, key: str) -> None:
    arn = _ARN.fullmatch(key)
    form = {AWS: _AWS_RESOURCE, GOOGLE: _GOOGLE_KEY, AZURE: _AZURE_KEY}[scheme]
    if not form.fullmatch(arn["resource"] if scheme == AWS and arn else key):
        raise BadInput(f"The {scheme}:/// URI does not name a key; it must have the form {_FORMS[scheme]}.")


def _check_aws(key: str, params: Mapping[str, str], where: str) -> None:
    if not _REGION.fullmatch(params.get("REGION", "")):
        raise BadInput(f"{where}: REGION must be set to the key's region, such as us-east-1.")
    arn = _ARN.fullmatch(key)
    if arn and arn["region"] != params["REGION"]:
        raise BadInput(f"{where}: REGION is {params['REGION']}, but the ARN names a key in {arn['region']}.")
    if "AWS_ENDPOINT" in params:
        check_endpoint(params["AWS_ENDPOINT"], "AWS_ENDPOINT", "https://host or https://host:port", where)
        check_not_in_the_clear(params["AWS_ENDPOINT"], f"{where}: AWS_ENDPOINT")


def _checked(scheme: str, pairs: list[tuple[str, str]], where: str) -> tuple[tuple[str, str], ...]:
    known = {"AUTH", "conn_id", *_CREDENTIALS[scheme], *_ADDRESS[scheme], *_ROLES[scheme]}
    names = [name for name, _ in pairs]
    unknown = sorted(set(names) - known)
    if unknown:
        hint = "; parameter names are upper case" if any(name.upper() in known for name in unknown) else ""
        takes = ", ".join(sorted(known, key=str.lower))
        raise BadInput(f"{where}: unknown query parameters: {', '.join(unknown)}{hint}; {scheme}:/// takes {takes}.")
    params: dict[str, str] = {}
    for name, value in pairs:
        if name in params or not value:
            raise BadInput(f"{where}: {name} is {'given twice' if value else 'empty'}.")
        # An unencoded + reads as a space; these secrets have no spaces. CockroachDB repairs it too.
        params[name] = value.replace(" ", "+") if name in SECRET_PARAMETERS else value
        if name == "AZURE_ENVIRONMENT":
            params[name] = value.upper()
        if params[name] not in _VALUES.get(name, (params[name],)):
            raise BadInput(f"{where}: unsupported value {value!r} for {name}; it may be {', '.join(_VALUES[name])}.")
    return tuple(params.items())
