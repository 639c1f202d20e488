"""Statements that encrypt, decrypt and change keys: what they are read as and written as; no error shows their secrets."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from spanvault.errors import BadInput
from spanvault.model.request import (
    AlterBackupRequest,
    BackupOptions,
    BackupRequest,
    EncryptionOptions,
    Request,
    RestoreRequest,
    ShowBackupRequest,
)
from spanvault.statement.parse import parse
from spanvault.statement.problems import masked
from spanvault.statement.render import render, render_redacted
from spanvault.statement.words import string_text

AWS = "aws:///alias/backups?REGION=eu-west-1&AUTH=implicit"
GOOGLE = "gs:///projects/p/locations/eu/keyRings/r/cryptoKeys/k?AUTH=implicit"
AZURE = f"azure-kms:///backups/{'0a' * 16}?AZURE_VAULT_NAME=vault&AUTH=implicit"
INLINE = "aws:///alias/backups?REGION=eu-west-1&AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=ΩΨΞ"
STARTS = ["BACKUP INTO 'file:///b'", "RESTORE FROM LATEST IN 'file:///b'", "SHOW BACKUP FROM LATEST IN 'file:///b'"]
ALTER = "ALTER BACKUP LATEST IN 'file:///b'"


def phrase(text: str) -> EncryptionOptions:
    return EncryptionOptions(passphrase=SecretStr(text))


def kms(*uris: str) -> EncryptionOptions:
    return EncryptionOptions(kms=tuple(map(SecretStr, uris)))


def keys_of(request: Request) -> EncryptionOptions:
    assert isinstance(request, BackupRequest | RestoreRequest | ShowBackupRequest)
    return request.encryption


def message(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse(text)
    return str(caught.value)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("option", "keys"),
    [
        ("encryption_passphrase = 'correct horse'", phrase("correct horse")),
        ("ENCRYPTION_PASSPHRASE='It''s = \"x\",\n--; ΩΨ'", phrase('It\'s = "x",\n--; ΩΨ')),
        ("encryption_passphrase = ' x '", phrase(" x ")),
        ("encryption_passphrase_from = 'env:BACKUP_KEY'", EncryptionOptions(passphrase_from="env:BACKUP_KEY")),
        (f"kms = '{AWS}'", kms(AWS)),
        (f"KMS = ('{AWS}')", kms(AWS)),
        (f"kms = ('{AWS}', '{GOOGLE}','{AZURE}')", kms(AWS, GOOGLE, AZURE)),
    ],
)
def test_what_a_statement_encrypts_or_reads_with(start: str, option: str, keys: EncryptionOptions) -> None:
    assert keys_of(parse(f"{start} WITH {option}")) == keys
    assert keys_of(parse(f"{start} WITH OPTIONS ({option});")) == keys
    assert not keys_of(parse(start)).given


def test_it_stands_beside_other_options() -> None:
    request = parse("BACKUP INTO 'file:///b' WITH workers = 3, encryption_passphrase = 'p', fingerprint")
    assert request == BackupRequest(into="file:///b", options=BackupOptions(workers=3, fingerprint=True), encryption=phrase("p"))
    shown = parse("SHOW BACKUP LATEST IN 'file:///b' WITH as_json, encryption_passphrase_from = 'prompt'")
    asked = EncryptionOptions(passphrase_from="prompt")
    assert shown == ShowBackupRequest(collection="file:///b", as_json=True, encryption=asked)


@pytest.mark.parametrize(
    ("change", "new", "old"),
    [
        (f"ADD NEW_KMS = '{AWS}' WITH OLD_KMS = '{GOOGLE}'", kms(AWS), kms(GOOGLE)),
        (f"add new_kms=('{AWS}','{AZURE}') with old_kms=('{GOOGLE}', '{AWS}')", kms(AWS, AZURE), kms(GOOGLE, AWS)),
        ("SET NEW_PASSPHRASE = 'New' WITH OLD_PASSPHRASE = 'Old'", phrase("New"), phrase("Old")),
        (
            "SET NEW_PASSPHRASE_FROM = 'env:NEW' WITH OLD_PASSPHRASE_FROM = 'variable:old'",
            EncryptionOptions(passphrase_from="env:NEW"),
            EncryptionOptions(passphrase_from="variable:old"),
        ),
        (
            "SET NEW_PASSPHRASE_FROM = 'prompt' WITH OLD_PASSPHRASE = 'Old'",
            EncryptionOptions(passphrase_from="prompt"),
            phrase("Old"),
        ),
    ],
)
def test_an_alteration(change: str, new: EncryptionOptions, old: EncryptionOptions) -> None:
    assert parse(f"{ALTER} {change}") == AlterBackupRequest(collection="file:///b", new=new, old=old)
    inside = parse(f"alter backup '2026/11/22-143000.00' in ('file:///b') {change};")
    assert inside == AlterBackupRequest(subdir="2026/11/22-143000.00", collection="file:///b", new=new, old=old)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (f"encryption_passphrase = 'ΩΨΞ', kms = '{AWS}'", "cannot have both encryption_passphrase and kms option set"),
        (f"kms = '{AWS}', encryption_passphrase = 'ΩΨΞ'", "cannot have both encryption_passphrase and kms option set"),
        (f"encryption_passphrase_from = 'prompt', kms = '{AWS}'", "cannot have both encryption_passphrase and kms option set"),
        ("encryption_passphrase = 'ΩΨΞ', encryption_passphrase_from = 'prompt'", "both name a passphrase"),
        ("encryption_passphrase = 'ΩΨΞ', encryption_passphrase = 'ΩΨΞ'", "Option encryption_passphrase is given twice"),
        (f"kms = '{INLINE}', kms = '{INLINE}'", "Option kms is given twice"),
        ("encryption_passphrase = ''", "The encryption passphrase is empty"),
        ("encryption_passphrase = 'redacted'", "write the passphrase there again"),
        ("encryption_passphrase", "Option encryption_passphrase needs a value: a passphrase in single quotes"),
        ("encryption_passphrase = ΩΨΞ", "needs a value: a passphrase in single quotes"),
        ("encryption_passphrase = 12345", "needs a value: a passphrase in single quotes"),
        ('encryption_passphrase = "ΩΨΞ Ω"', "needs a value: a passphrase in single quotes"),
        ("encryption_passphrase = ('ΩΨΞ', 'Ω')", "needs a value: a passphrase in single quotes"),
        ("encryption_passphrase ΩΨΞ", "Option encryption_passphrase needs a value: write '=' between them"),
        ("encryption_passphrase_from = 'ΩΨΞ'", "connection:ID, variable:NAME, env:NAME or prompt"),
        ("encryption_passphrase_from = env", "'connection:ID', 'variable:NAME', 'env:NAME' or 'prompt'"),
        ("kms", "Option kms needs a value: a URI in single quotes, or several"),
        ("kms = ΩΨΞ", "Option kms needs a value: a URI in single quotes, or several"),
        ("kms = 'ΩΨΞ'", "The KMS URI has no scheme"),
        ("kms = 'aws:///alias/k?AUTH=implicit'", "REGION must be set"),
        ("encryption_pasphrase = 'ΩΨΞ'", "has no option 'encryption_pasphrase'; did you mean encryption_passphrase"),
        ("encryption_passphrase = 'ΩΨΞ', wrkers = 3", "has no option of the name that stands here"),
    ],
)
def test_options_that_are_refused_in_every_statement(start: str, options: str, sentence: str) -> None:
    text = message(f"{start} WITH {options}")
    assert sentence in text
    assert not set("ΩΨΞωψξ") & set(text)


def test_the_second_of_two_that_contradict_is_pointed_at() -> None:
    text = f"BACKUP INTO 'file:///b' WITH encryption_passphrase = 'ΩΨΞ', kms = '{AWS}'"
    assert message(text).startswith(f"Line 1, column {text.index('kms') + 1}: ")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (f"ADD NEW_KMS = '{AWS}'", "expected WITH, found the end of the statement"),
        (f"ADD NEW_KMS = '{AWS}' WITH OLD_PASSPHRASE = 'ΩΨΞ'", "expected OLD_KMS, found"),
        (f"SET NEW_KMS = '{AWS}' WITH OLD_KMS = '{AWS}'", "expected NEW_PASSPHRASE or NEW_PASSPHRASE_FROM, found 'NEW_KMS'"),
        ("ADD NEW_PASSPHRASE = 'ΩΨΞ' WITH OLD_PASSPHRASE = 'ΩΨΞ'", "expected NEW_KMS, found 'NEW_PASSPHRASE'"),
        ("SET NEW_PASSPHRASE = 'ΩΨΞ'", "expected WITH, found the end of the statement"),
        ("SET NEW_PASSPHRASE = ΩΨΞ WITH OLD_PASSPHRASE = 'ΩΨΞ'", "expected a string in single quotes, found"),
        ("SET NEW_PASSPHRASE = '' WITH OLD_PASSPHRASE = 'ΩΨΞ'", "column 40: The encryption passphrase is empty"),
        ("SET NEW_PASSPHRASE = 'ΩΨΞ' WITH OLD_PASSPHRASE = 'redacted'", "write the passphrase there again"),
        ("SET NEW_PASSPHRASE_FROM = 'ΩΨΞ' WITH OLD_PASSPHRASE = 'ΩΨΞ'", "connection:ID, variable:NAME, env:NAME or prompt"),
        ("ADD NEW_KMS = ('aws:///x?AUTH=implicit', 'ΩΨΞ') WITH OLD_KMS = 'ΩΨΞ'", "REGION must be set"),
        (f"ADD NEW_KMS = '{INLINE}' WITH OLD_KMS = '{INLINE}&X=ΩΨΞ'", "unknown query parameters: X"),
        (f"ADD NEW_KMS = {INLINE} WITH OLD_KMS = '{INLINE}'", "found something that is not shown here"),
        ("", "expected ADD or SET, found the end of the statement"),
    ],
)  # fmt: skip
def test_alterations_that_are_refused(change: str, part: str) -> None:
    text = message(f"{ALTER} {change}")
    assert part in text, text
    assert not set("ΩΨΞωψξ") & set(text), text


def test_alterations_of_several_places_or_none() -> None:
    several = "('file:///a?COCKROACH_LOCALITY=default', 'file:///b?COCKROACH_LOCALITY=region%3Deu')"
    request = parse(f"ALTER BACKUP LATEST IN {several} ADD NEW_KMS = '{AWS}' WITH OLD_KMS = '{GOOGLE}'")
    assert isinstance(request, AlterBackupRequest)
    assert request.collection.splitlines() == several.strip("()'").split("', '")
    assert "expected IN, found ADD" in message("ALTER BACKUP 'a' ADD NEW_KMS = 'x' WITH OLD_KMS = 'x'").replace("'", "")
    assert "schedule in Airflow" in message("ALTER BACKUP SCHEDULE 1 SET FULL BACKUP ALWAYS")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (
            "backup into 'file:///b' with encryption_passphrase='ΩΨΞ', fingerprint",
            "BACKUP INTO 'file:///b' WITH fingerprint, encryption_passphrase = 'redacted'",
        ),
        (
            f"restore from latest in 'file:///b' with kms=('{AWS}','{INLINE}')",
            f"RESTORE FROM LATEST IN 'file:///b' WITH kms = ('{AWS}', '{INLINE.replace('ΩΨΞ', 'redacted')}')",
        ),
        (
            "show backup latest in 'file:///b' with encryption_passphrase_from='connection:key'",
            "SHOW BACKUP FROM LATEST IN 'file:///b' WITH encryption_passphrase_from = 'connection:key'",
        ),
        (
            "alter backup '2026/11/22-143000.00' in 'file:///b' set new_passphrase='ΩΨΞ' with old_passphrase_from='prompt'",
            "ALTER BACKUP '2026/11/22-143000.00' IN 'file:///b' "
            "SET NEW_PASSPHRASE = 'redacted' WITH OLD_PASSPHRASE_FROM = 'prompt'",
        ),
        (
            f"alter backup latest in 'file:///b' add new_kms='{INLINE}' with old_kms=('{GOOGLE}','{AWS}')",
            f"ALTER BACKUP LATEST IN 'file:///b' ADD NEW_KMS = '{INLINE.replace('ΩΨΞ', 'redacted')}' "
            f"WITH OLD_KMS = ('{GOOGLE}', '{AWS}')",
        ),
    ],
)
def test_a_request_is_written_without_its_secrets(text: str, canonical: str) -> None:
    assert render(parse(text)) == render_redacted(parse(text)) == canonical


def test_a_statement_whose_passphrase_was_taken_out_does_not_run() -> None:
    shown = render(parse("BACKUP INTO 'file:///b' WITH encryption_passphrase = 'ΩΨΞ'"))
    assert "write the passphrase there again" in message(shown)


references = st.one_of(
    st.just("prompt"),
    st.from_regex(r"env:[A-Z_][A-Z0-9_]{0,20}|connection:[\w#!()./:-]{1,20}|variable:[!-~äß€]{1,20}", fullmatch=True),
)
public_keys = st.one_of(
    references.filter(str.isascii).map(lambda text: EncryptionOptions(passphrase_from=text)),
    st.lists(st.sampled_from([AWS, GOOGLE, AZURE]), min_size=1, max_size=3).map(lambda uris: kms(*uris)),
)
places = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
public = st.one_of(
    st.builds(BackupRequest, into=places, encryption=public_keys),
    st.builds(RestoreRequest, collection=places, encryption=public_keys),
    st.builds(ShowBackupRequest, collection=places, as_json=st.booleans(), encryption=public_keys),
    st
    .tuples(public_keys, public_keys, places)
    .filter(lambda three: bool(three[0].kms) == bool(three[1].kms))
    .map(lambda three: AlterBackupRequest(old=three[0], new=three[1], collection=three[2])),
)


@settings(deadline=None)
@given(public)
def test_a_request_without_secrets_is_written_and_read_as_itself(request: Request) -> None:
    assert parse(render(request)) == request


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip).filter(lambda text: text != "redacted"))
def test_any_passphrase_can_be_written_and_is_not_shown(text: str) -> None:
    for start in STARTS:
        assert keys_of(parse(f"{start} WITH encryption_passphrase = {string_text(text)}")) == phrase(text)
    altered = parse(f"{ALTER} SET NEW_PASSPHRASE = {string_text(text)} WITH OLD_PASSPHRASE = {string_text(text)}")
    assert altered == AlterBackupRequest(collection="file:///b", new=phrase(text), old=phrase(text))


# Greek letters stand nowhere else: where one is shown, the secret is.
GREEK = "ΩΨΞΣ"
FORMS = [
    "BACKUP INTO 'file:///b' WITH encryption_passphrase = '{}'",
    "BACKUP INTO 'file:///b' WITH encryption_passphrase = '{}' nonsense",
    "BACKUP INTO 'file:///b' WITH encryption_passphrase = {}, workers = 2",
    "BACKUP INTO 'file:///b' WITH encryption_passphrase = \"{}\"",
    "BACKUP INTO 'file:///b' WITH encryption_passphrase '{}'",
    "BACKUP INTO 'file:///b' WITH encryption_passphrase {}",
    "BACKUP INTO 'file:///b' WITH workers = 2 encryption_passphrase = '{}'",
    "BACKUP INTO 'file:///b WITH encryption_passphrase = '{}'",
    "BACKUP INTO file:///b' WITH encryption_passphrase = '{}'",
    "BACKUP INTO file:///b WITH encryption_passphrase = '{}'",
    "-- it's\nBACKUP INTO 'file:///b' WITH\nencryption_passphrase\n=\n'{}'\n;",
    "RESTORE FROM LATEST IN 'file:///b' WITH OPTIONS (encryption_passphrase = '{}'",
    "SHOW BACKUP LATEST IN 'file:///b' WITH \"encryption_passphrase\" = '{}'",
    "SHOW BACKUPS IN 'file:///b' WITH encryption_passphrase = '{}'",
    "ALTER BACKUP LATEST IN 'file:///b' SET NEW_PASSPHRASE = '{}' WITH OLD_PASSPHRASE = '{}'",
    "ALTER BACKUP LATEST IN 'file:///b' SET NEW_PASSPHRASE = {} WITH OLD_PASSPHRASE = {}",
    "ALTER BACKUP LATEST IN 'file:///b' SET OLD_PASSPHRASE '{}' WITH NEW_PASSPHRASE '{}'",
    "ALTER BACKUP LATEST IN 'file:///b' ADD OLD_PASSPHRASE = '{}'",
    "EXPLAIN BACKUP INTO 'file:///b' WITH encryption_passphrase = {}",
    "CREATE SCHEDULE FOR BACKUP INTO 'file:///b' WITH encryption_passphrase = '{}' RECURRING '@daily'",
    "SET encryption_passphrase = '{}'",
    "BACKUP INTO 'file:///b' WITH passphrase = {}",
    "BACKUP INTO 'file:///b' WITH passphrase '{}'",
    "BACKUP INTO 'file:///b' WITH encryption_password = '{}'",
]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(FORMS),
    st.lists(st.sampled_from([*GREEK, *"'\" =\n\t,;()/*-?@:", "''", "--", "s3://"]), min_size=1).map("".join),
)
@example(FORMS[0], "it's Ω")
@example(FORMS[0], "Ω's Ψ's Ξ's Σ's")
@example(FORMS[0], "Ω', Ψ = 'Ξ")
@example(FORMS[0], "Ω', Ψ Ξ, 'Σ")
@example(FORMS[1], "Ω=Ψ\nΞ")
@example(FORMS[3], "Ω Ψ Ξ")
@example(FORMS[5], "Ω")
@example(FORMS[5], ",Ω/")
@example(FORMS[12], "s3://Ω/Ψ")
def test_no_error_shows_any_part_of_a_passphrase(form: str, secret: str) -> None:
    try:
        request = parse(form.replace("{}", secret))
    except BadInput as error:
        assert not set(GREEK + GREEK.lower() + "ς") & set(str(error)), str(error)
    else:
        place = request.into if isinstance(request, BackupRequest) else request.collection
        if not set(GREEK) & set(place):  # a string that is not closed may end up as a place
            assert not set(GREEK) & set(render(request) + repr(request) + request.model_dump_json())


@pytest.mark.parametrize(
    "text",
    [
        f"BACKUP INTO 'x' WITH kms = '{INLINE}' nonsense",
        f"BACKUP INTO 'x' WITH kms = {INLINE}",
        f"BACKUP INTO 'x' WITH kms = \"{INLINE}\"",
        f"BACKUP INTO 'x' WITH kms = '{INLINE}",
        f"BACKUP INTO 'x' WITH kms = ('{INLINE}', {INLINE})",
        f"BACKUP INTO 'x' WITH kms = ('{INLINE}' '{INLINE}')",
        f"BACKUP INTO 'x' WITH kms '{INLINE}'",
        "BACKUP INTO 'x' WITH kms = 'aws://me:ΩΨΞ@host/k' nonsense",
        "BACKUP INTO 'x' WITH kms = ΩΨ ΞΣ, workers = 2",
        "BACKUP INTO 'x' /* kms = 'ΩΨΞ' */ -- 'ΩΨΞ'\n nonsense",
        f"BACKUP INTO {INLINE} WITH workers = '",
        "BACKUP INTO x' WITH workers = 'ΩΨΞ ΩΨΞ'",
        "-- don't\nBACKUP INTO x 'ΩΨΞ ΩΨΞ' -- isn't",
        "BACKUP INTO x -- the key was ΩΨΞ",
        "BACKUP INTO x /* the key was ΩΨΞ",
        f"ALTER BACKUP LATEST IN 'x' ADD NEW_KMS = '{INLINE}' WITH OLD_KMS = {INLINE}",
        f"ALTER BACKUP LATEST IN 'x' ADD NEW_KMS = '{INLINE}' OLD_KMS = '{INLINE}'",
    ],
)
def test_no_error_shows_other_secrets(text: str) -> None:
    assert not set("ΩΨΞΣωψξσ") & set(message(text)), message(text)


@settings(deadline=None)
@given(st.text())
def test_what_is_masked_stays_in_its_place(text: str) -> None:
    hidden = masked(text)
    assert len(hidden) == len(text)
    assert [place for place, character in enumerate(hidden) if character == "\n"] == [
        place for place, character in enumerate(text) if character == "\n"
    ]


def test_what_is_no_secret_stays_readable_before_one() -> None:
    text = message("BACKUP DATABASE shop INT 'file:///b' WITH kms = 'gs:///k?x', encryption_passphrase = 'ΩΨΞ'")
    assert "BACKUP DATABASE shop INT 'file:///b' WITH kms = 'gs:///k··', encryption_passphrase =······" in text


@pytest.mark.parametrize("name", ["passphrases", "sales.passphrase", '"Passphrase"'])
def test_a_table_may_be_called_so(name: str) -> None:
    assert "INTO 'file:///b' nonsense" in message(f"BACKUP TABLE {name} INTO 'file:///b' nonsense")
