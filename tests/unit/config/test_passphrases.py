"""Where a passphrase comes from."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from spanvault.config.connections import EnvironmentConnections
from spanvault.config.passphrases import Use, find_passphrase
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


class Typist:
    """A person who types these in turn, and remembers what was asked."""

    def __init__(self, *typed: str) -> None:
        self.typed = iter(typed)
        self.asked: list[str] = []

    def __call__(self, question: str) -> SecretStr:
        self.asked.append(question)
        return SecretStr(next(self.typed))


def test_a_new_passphrase_is_typed_twice_and_questions_say_which_one_is_meant() -> None:
    person = Typist("old", "to open", "new", "new")
    uses: tuple[Use, ...] = ("old", "open", "new")
    found = [find_passphrase("prompt", CONNECTIONS, person, use).get_secret_value() for use in uses]
    assert found == ["old", "to open", "new"]
    assert person.asked == [
        "Old passphrase of the backup",
        "Passphrase of the backup",
        "New passphrase of the backup",
        "The new passphrase once more",
    ]


def test_a_slip_in_a_new_passphrase_is_refused() -> None:
    with pytest.raises(BadInput, match="are not the same; nothing was done") as caught:
        find_passphrase("prompt", CONNECTIONS, Typist("horse battery", "horse batery"), "new")
    assert "horse" not in str(caught.value)


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
