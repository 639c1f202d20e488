"""With what backups are encrypted and read: what is taken, and that no dump and no text of a request holds it."""

from __future__ import annotations

import pickle
from base64 import b64encode

import pytest
from pydantic import SecretStr, ValidationError

from spanvault.errors import BadInput
from spanvault.model.request import (
    AlterBackupRequest,
    BackupRequest,
    EncryptionOptions,
    RestoreRequest,
    ShowBackupRequest,
)
from spanvault.statement.render import render, render_redacted
from spanvault.statement.rules import check

SECRET = "correct horse"
KEY = "aws:///alias/backups?REGION=eu-west-1&AUTH=implicit"
SECRET_KEY = f"aws:///alias/backups?REGION=eu-west-1&AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY={SECRET.split()[1]}"
PASSPHRASE = EncryptionOptions(passphrase=SecretStr(SECRET))
REFERENCE = EncryptionOptions(passphrase_from="env:HORSE")
KMS = EncryptionOptions(kms=(SecretStr(KEY), SecretStr(SECRET_KEY)))


def requests(keys: EncryptionOptions) -> list[BackupRequest | RestoreRequest | ShowBackupRequest | AlterBackupRequest]:
    return [
        BackupRequest(into="file:///b", encryption=keys),
        RestoreRequest(collection="file:///b", encryption=keys),
        ShowBackupRequest(collection="file:///b", encryption=keys),
        AlterBackupRequest(collection="file:///b", old=keys, new=keys),
    ]


def test_whether_anything_is_given() -> None:
    assert [keys.given for keys in (EncryptionOptions(), PASSPHRASE, REFERENCE, KMS)] == [False, True, True, True]


@pytest.mark.parametrize("keys", [PASSPHRASE, REFERENCE, KMS], ids=["passphrase", "reference", "kms"])
def test_no_dump_and_no_text_of_a_request_holds_it(keys: EncryptionOptions) -> None:
    for request in requests(keys):
        dumps = [
            request.model_dump_json(),
            request.model_dump_json(round_trip=True),
            request.to_json().decode(),
            str(request.model_dump()),
            str(request.model_dump(mode="json", include={"encryption", "old", "new"})),
            repr(request),
            str(request),
        ]
        for dump in dumps:
            assert not any(part in dump.lower() for part in ("horse", "alias/backups", "passphrase", "kms", "encryption")), dump


@pytest.mark.parametrize("keys", [PASSPHRASE, KMS], ids=["passphrase", "kms"])
def test_no_text_of_the_options_holds_a_secret(keys: EncryptionOptions) -> None:
    for text in (repr(keys), str(keys), keys.model_dump_json(), str(keys.model_dump())):
        assert "horse" not in text


def test_no_statement_that_is_shown_holds_a_secret() -> None:
    for request in (*requests(PASSPHRASE), *requests(KMS)):
        for text in (render(request), render_redacted(request)):
            assert "horse" not in text
            assert "redacted" in text


def test_who_asks_for_the_same_with_another_key_goes_on_with_the_same_run() -> None:
    plain = BackupRequest(into="file:///b")
    assert {BackupRequest(into="file:///b", encryption=keys).digest() for keys in (PASSPHRASE, REFERENCE, KMS)} == {
        plain.digest()
    }
    assert BackupRequest(into="file:///c").digest() != plain.digest()


@pytest.mark.parametrize("keys", [PASSPHRASE, REFERENCE, KMS], ids=["passphrase", "reference", "kms"])
def test_copies_between_processes_of_one_machine_keep_it(keys: EncryptionOptions) -> None:
    for request in requests(keys):
        copies = (
            pickle.loads(pickle.dumps(request)),  # noqa: S301 - our own bytes
            request.model_copy(),
            request.model_copy(deep=True),
            request.model_copy(update={"collection": "file:///c"}),
        )
        for copy in copies:
            found = [copy.old, copy.new] if isinstance(copy, AlterBackupRequest) else [copy.encryption]
            assert all(one == keys for one in found)
    back: BackupRequest = pickle.loads(pickle.dumps(BackupRequest(into="file:///b", encryption=PASSPHRASE)))  # noqa: S301 - our own bytes
    assert back.encryption.passphrase is not None
    assert back.encryption.passphrase.get_secret_value() == SECRET


def test_a_request_that_was_stored_comes_back_without_it() -> None:
    stored = BackupRequest(into="file:///b", encryption=PASSPHRASE).to_json()
    assert not BackupRequest.from_json(stored, "the plan").encryption.given


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"passphrase": "horse", "kms": (KEY,)}, "cannot have both encryption_passphrase and kms option set"),
        ({"passphrase_from": "prompt", "kms": (KEY,)}, "cannot have both encryption_passphrase and kms option set"),
        ({"passphrase": "horse", "passphrase_from": "prompt"}, "both name a passphrase; give one of them"),
        ({"passphrase": ""}, "The encryption passphrase is empty"),
        ({"passphrase": " \n"}, "The encryption passphrase is empty"),
        ({"passphrase": "redacted"}, "write the passphrase there again"),
        ({"passphrase": "horse\udcff"}, "cannot be written in UTF-8"),
        ({"kms": ("horse",)}, "The KMS URI has no scheme"),
        ({"kms": (KEY, "")}, "The KMS URI is empty; give that of a key"),
        ({"kms": ("aws:///alias/horse?AUTH=implicit",)}, "REGION must be set"),
        *(
            ({"passphrase_from": text}, "connection:ID, variable:NAME, env:NAME or prompt")
            for text in (
                "", "horse", "prompt:horse", "Prompt", "env:", "env:1HORSE", "env:HORSE x", "env:HÖRSE", "env:HORSE\n",
                "connection:", "connection:a horse", "variable:", "variable:a horse", "variable:horse\0", "file:/horse",
                " prompt",
            )
        ),
    ],
)  # fmt: skip
def test_options_that_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        EncryptionOptions.model_validate(fields)
    if sentence != "REGION must be set":  # a key's name is no secret
        assert "horse" not in str(caught.value).lower()


@pytest.mark.parametrize("text", ["connection:backup_key", "connection:team/a.b-c", "variable:Backup-Key", "env:_KEY2", "prompt"])
def test_where_a_passphrase_may_come_from(text: str) -> None:
    assert EncryptionOptions(passphrase_from=text).passphrase_from == text


@pytest.mark.parametrize("fields", [{"passphrase": [SECRET]}, {"passphrse": SECRET}, {"kms": SECRET}, {"kms": {SECRET: 1}}])
def test_what_is_no_option_at_all_is_not_quoted(fields: dict[str, object]) -> None:
    for model, values in (
        (EncryptionOptions, fields),
        (BackupRequest, {"into": "x", "encryption": fields}),
        (RestoreRequest, {"collection": "x", "encryption": fields}),
        (ShowBackupRequest, {"collection": "x", "encryption": fields}),
        (AlterBackupRequest, {"collection": "x", "old": fields}),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(values)
        assert "horse" not in str(caught.value)


def test_an_alteration_needs_two_of_the_same_kind() -> None:
    half = AlterBackupRequest(collection="x", old=PASSPHRASE)
    for request in (half, AlterBackupRequest(collection="x", new=KMS)):
        with pytest.raises(BadInput, match="ALTER BACKUP needs both"):
            check(request)
    with pytest.raises(BadInput, match="two of the same kind"):
        check(half.model_copy(update={"new": KMS}))
    check(half.model_copy(update={"new": REFERENCE}))
    check(AlterBackupRequest(collection="x", old=KMS, new=KMS))


def test_a_google_key_file_in_a_uri_is_not_shown() -> None:
    key_file = b64encode(
        b'{"type": "service_account", "private_key": "horse", "client_email": "a@b", "token_uri": "https://t"}'
    ).decode()
    name = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    keys = EncryptionOptions(kms=(SecretStr(f"gs:///{name}?AUTH=specified&CREDENTIALS={key_file}"),))
    text = render(BackupRequest(into="file:///b", encryption=keys))
    assert text == f"BACKUP INTO 'file:///b' WITH kms = 'gs:///{name}?AUTH=specified&CREDENTIALS=redacted'"
