"""Where a passphrase comes from."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.passphrases import find_passphrase
from spanvault.errors import BadInput, NotFound

CONNECTIONS = EnvironmentConnections({
    "AIRFLOW_CONN_VAULT": '{"conn_type": "generic", "password": "from a connection"}',
    "AIRFLOW_CONN_BARE": '{"conn_type": "generic"}',
    "AIRFLOW_VAR_BACKUP_KEY": "from a variable",
    "AIRFLOW_VAR_NOTHING": "",
})


@pytest.mark.parametrize(
    ("reference", "passphrase"),
    [
        ("connection:vault", "from a connection"),
        ("variable:backup_key", "from a variable"),
        ("env:SOME_PASSPHRASE", "from the environment"),
        ("prompt", "typed"),
    ],
)
def test_each_reference_leads_to_its_secret(monkeypatch: pytest.MonkeyPatch, reference: str, passphrase: str) -> None:
    monkeypatch.setenv("SOME_PASSPHRASE", "from the environment")
    found = find_passphrase(reference, CONNECTIONS, ask=lambda question: SecretStr("typed"))
    assert found.get_secret_value() == passphrase
    assert passphrase not in repr(found)


@pytest.mark.parametrize(
    ("reference", "error", "sentence"),
    [
        ("connection:other", NotFound, "There is no connection 'other'"),
        ("connection:bare", BadInput, "is empty; put it into the connection's password"),
        ("variable:other", NotFound, "There is no variable 'other'"),
        ("variable:nothing", BadInput, "is empty"),
        ("env:BLANK", BadInput, "env:BLANK is empty"),
        ("env:NOT_SET_ANYWHERE", NotFound, "NOT_SET_ANYWHERE of the passphrase is not set"),
        ("prompt", BadInput, "nobody to ask"),
        ("file:/etc/secret", BadInput, "connection:ID, variable:NAME, env:NAME or prompt"),
    ],
)
def test_what_leads_nowhere_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, reference: str, error: type[Exception], sentence: str
) -> None:
    monkeypatch.setenv("BLANK", " ")
    with pytest.raises(error, match=sentence):
        find_passphrase(reference, CONNECTIONS)
