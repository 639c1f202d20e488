"""Where a passphrase is kept: a reference, which may be shown to anybody, leads to the secret."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from pydantic import SecretStr

from spanvault.config.connections import ConnectionResolver
from spanvault.errors import BadInput, NotFound

Ask = Callable[[str], SecretStr]
"""Asks a person for a secret; is given the question."""

Use = Literal["open", "old", "new"]
"""What a passphrase is for: to open a backup; to open one that gets another passphrase; to encrypt with from now on."""
_QUESTIONS: dict[Use, str] = {
    "open": "Passphrase of the backup",
    "old": "Old passphrase of the backup",
    "new": "New passphrase of the backup",
}


def refuse_to_ask(question: str) -> SecretStr:
    """For places without a person. Raises BadInput."""
    raise BadInput(f"There is nobody to ask here ({question}): name a connection, a variable or an environment variable instead.")


def find_passphrase(reference: str, connections: ConnectionResolver, ask: Ask = refuse_to_ask, use: Use = "open") -> SecretStr:
    """The passphrase that `connection:ID`, `variable:NAME`, `env:NAME` or `prompt` leads to. Who types a new one does so
    twice: nothing else would find a slip before the backup is needed.

    Raises NotFound when it is not there, BadInput when it is empty or no UTF-8, typed differently, or the reference is none.
    """
    kind, _, name = reference.partition(":")
    if kind == "connection":
        found = connections.resolve(name).password
    elif kind == "variable":
        found = connections.variable(name)
    elif kind == "env":
        if name not in os.environ:
            raise NotFound(f"The environment variable {name} of the passphrase is not set.")
        found = SecretStr(os.environ[name])
    elif reference == "prompt":
        found = ask(_QUESTIONS[use])
        if use == "new" and found.get_secret_value() and ask("The new passphrase once more") != found:
            raise BadInput("The two passphrases that were typed are not the same; nothing was done, so start again.")
    else:
        raise BadInput("A passphrase's reference is connection:ID, variable:NAME, env:NAME or prompt.")
    what = "The passphrase that was typed" if reference == "prompt" else f"The passphrase from {reference}"
    if found is None or not found.get_secret_value().strip():
        raise BadInput(f"{what} is empty" + ("; put it into the connection's password." if kind == "connection" else "."))
    try:
        found.get_secret_value().encode()
    except UnicodeEncodeError:
        # Python gives bytes of the environment that it cannot read as halves of surrogate pairs.
        raise BadInput(f"{what} holds bytes or characters that are no UTF-8; give one in UTF-8.") from None
    return found
