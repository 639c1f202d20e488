"""From an operator's references to the engine's encryption options. A secret never stands in a form, an XCom or a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanvault.model.request import EncryptionOptions

TEMPLATES = {"passphrase_from": "{{ params.passphrase_from }}", "kms": "{{ params.kms | join('\n') }}"}
"""The operator's `encryption` as templates over the form."""


def encryption_of(given: Mapping[str, Any]) -> EncryptionOptions:
    """The options that the rendered references stand for. Raises BadInput for a secret, a question to nobody, and for none
    where one is required."""
    from pydantic import SecretStr

    from spanvault.errors import BadInput
    from spanvault.model.kms_uri import KmsUri
    from spanvault.model.request import EncryptionOptions

    reference = str(given.get("passphrase_from") or "").strip()
    named = given.get("kms") or ()
    kms = [line.strip() for line in (named.splitlines() if isinstance(named, str) else named) if line.strip()]
    if reference == "prompt":
        raise BadInput("Airflow has nobody to ask for a passphrase: name a connection, a variable or an environment variable.")
    if any(KmsUri.parse(uri).has_inline_secrets for uri in kms):
        raise BadInput("A key's URI carries a secret, which Airflow would show; name a connection with ?conn_id= instead.")
    options = EncryptionOptions(passphrase_from=reference or None, kms=tuple(SecretStr(uri) for uri in kms))
    if given.get("required") and not options.given:
        raise BadInput("This backup has to be encrypted: name the passphrase's connection, or keys of a key service.")
    return options
