"""Settings from the environment, and the places they allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanvault.config.settings import Settings
from spanvault.errors import BadInput, Refused
from spanvault.model.kms_uri import KmsUri
from spanvault.model.uri import StorageUri

KEYS = "AWS_ACCESS_KEY_ID=k&AWS_SECRET_ACCESS_KEY=hunter2"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SPANVAULT_{name.upper()}", raising=False)


def allowed(*prefixes: str, **settings: object) -> Settings:
    return Settings.model_validate({"allowed_destinations": prefixes, **settings})


def check(settings: Settings, uri: str) -> None:
    settings.check_destination(StorageUri.parse(uri))


def test_every_knob_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPANVAULT_EXTERNAL_IO_DIR", str(tmp_path))
    monkeypatch.setenv("SPANVAULT_ALLOWED_DESTINATIONS", "s3://a1/b, file:///c\n nodelocal://self/")
    monkeypatch.setenv("SPANVAULT_STORAGE_READ_TIMEOUT", "2.5")
    monkeypatch.setenv("SPANVAULT_STORAGE_UPLOAD_MEMORY", "64MiB")
    monkeypatch.setenv("SPANVAULT_SCRATCH_DIR", "")
    settings = Settings.load()
    assert settings.external_io_dir == tmp_path
    assert settings.allowed_destinations == ("s3://a1/b", "file:///c", "nodelocal://self/")
    assert settings.storage_read_timeout == 2.5
    assert settings.storage_upload_memory == 64 << 20
    assert settings.scratch_dir is None


def test_paths_do_not_follow_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.model_validate({"clusters_file": "clusters.yaml"})
    assert settings.external_io_dir == Settings.load().external_io_dir
    assert settings.clusters_file == Path.cwd() / "clusters.yaml"
    assert Settings.model_validate({"external_io_dir": "~/x"}).external_io_dir == tmp_path / "x"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LOCALITY", "eu", "SPANVAULT_LOCALITY cannot be used: Locality 'eu': tier must be in the form"),
        ("STORAGE_ATTEMPTS", "0", "SPANVAULT_STORAGE_ATTEMPTS cannot be used: "),
        ("STORAGE_READ_TIMEOUT", "soon", "SPANVAULT_STORAGE_READ_TIMEOUT cannot be used: "),
        ("STORAGE_UPLOAD_MEMORY", "1MiB", "SPANVAULT_STORAGE_UPLOAD_MEMORY cannot be used: "),
        (
            "ALLOWED_DESTINATIONS",
            "ftp://a/",
            "SPANVAULT_ALLOWED_DESTINATIONS cannot be used: The storage URI has the unknown scheme",
        ),
        (
            "ALLOWED_DESTINATIONS",
            f"s3://b1/?{KEYS}",
            "SPANVAULT_ALLOWED_DESTINATIONS cannot be used: An allowed destination takes",
        ),
        (
            "ALLOWED_DESTINATIONS",
            "aws-kms:///alias/a?AWS_ENDPOINT=https://kms.example",
            "SPANVAULT_ALLOWED_DESTINATIONS cannot be used: An allowed key service must have the form aws-kms:///?AWS_ENDPOINT=",
        ),
        (
            "ALLOWED_DESTINATIONS",
            "aws-kms:///?AWS_ENDPOINT=kms.example",
            "SPANVAULT_ALLOWED_DESTINATIONS cannot be used: An allowed key service: AWS_ENDPOINT must have the form",
        ),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str) -> None:
    monkeypatch.setenv(f"SPANVAULT_{name}", value)
    with pytest.raises(BadInput) as caught:
        Settings.load()
    assert sentence in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_list_every_place_is_allowed() -> None:
    for uri in ("file:///anywhere", f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=http://host", "nodelocal://self/x"):
        check(allowed(), uri)


@pytest.mark.parametrize(
    "uri", [f"s3://bucket/backups?{KEYS}", f"s3://bucket/backups/a/b?{KEYS}", "s3://bucket/backups?conn_id=x", "file:///srv/a"]
)
def test_what_is_below_an_entry_is_allowed(uri: str) -> None:
    check(allowed("s3://bucket/backups/", "file:///srv"), uri)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://bucket/backups2?{KEYS}",
        f"s3://bucket/?{KEYS}",
        f"s3://bucket2/backups?{KEYS}",
        f"s3://bucket/backups?{KEYS}&AWS_ENDPOINT=https://elsewhere.example",
        "s3://bucket/backups?conn_id=x&AWS_ENDPOINT=https://elsewhere.example",
        "file:///srv2",
        "file:///",
        "nodelocal://self/srv",
    ],
)
def test_what_is_not_below_an_entry_is_refused(uri: str) -> None:
    with pytest.raises(Refused, match="is not below any of SPANVAULT_ALLOWED_DESTINATIONS") as caught:
        check(allowed("s3://bucket/backups/", "file:///srv"), uri)
    assert "hunter2" not in str(caught.value)


def test_an_entry_may_name_the_endpoint() -> None:
    settings = allowed("s3://bucket/?AWS_ENDPOINT=http://store:8333")
    check(settings, f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=http://STORE:8333/")
    check(settings, "s3://bucket/a?conn_id=x")
    for uri in (f"s3://bucket/a?{KEYS}", f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=http://store:8334"):
        with pytest.raises(Refused):
            check(settings, uri)


def test_links_are_not_a_way_around(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "alias").symlink_to(tmp_path / "srv")
    settings = allowed(f"file://{tmp_path}/srv")
    check(settings, f"file://{tmp_path}/alias/a")
    with pytest.raises(Refused):
        check(settings, f"file://{tmp_path}/srv/link/a")
    with pytest.raises(Refused, match="leads out of SPANVAULT_EXTERNAL_IO_DIR"):
        Settings(external_io_dir=tmp_path / "srv").local_folder(StorageUri.parse("nodelocal://self/link"))


def test_switched_off_ways_name_the_switch() -> None:
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS"):
        check(allowed(external_io_disable_implicit_credentials=True), "s3://bucket/a?AUTH=implicit")
    with pytest.raises(Refused, match="SPANVAULT_EXTERNAL_IO_DISABLE_HTTP"):
        check(allowed(external_io_disable_http=True), f"s3://bucket/a?{KEYS}&AWS_ENDPOINT=http://host")
    with pytest.raises(Refused, match="names an AZURE_ENDPOINT, which SPANVAULT_EXTERNAL_IO_DISABLE_HTTP"):
        check(allowed(external_io_disable_http=True), "azure://box/a?conn_id=x&AZURE_ENDPOINT=https://host")
    check(allowed(external_io_disable_http=True), "azure://box/a?conn_id=x")


AZURE = "AUTH=implicit&AZURE_ACCOUNT_NAME=acct"


@pytest.mark.parametrize(
    ("entry", "uri"),
    [
        ("gs://bucket/a", "gs://bucket/a/b?AUTH=implicit"),
        ("azure-blob://box/a?AZURE_ACCOUNT_NAME=acct", f"azure://box/a/b?{AZURE}"),
        ("azure://box/a?AZURE_ACCOUNT_NAME=acct", f"azure-blob://box/a?{AZURE}&AZURE_ENVIRONMENT=AzurePublicCloud"),
        (
            "azure://box/?AZURE_ACCOUNT_NAME=acct&AZURE_ENDPOINT=http://h:1/acct",
            f"azure://box/a?{AZURE}&AZURE_ENDPOINT=http://H:1/acct/",
        ),
        ("azure://box/", "azure-storage://box/a?conn_id=x"),
        ("azure://box/?AZURE_ACCOUNT_NAME=acct", "azure://box/a?conn_id=x"),
    ],
)
def test_entries_of_other_stores_allow_what_they_name(entry: str, uri: str) -> None:
    check(allowed(entry), uri)


@pytest.mark.parametrize(
    ("entry", "uri"),
    [
        ("gs://bucket/a", "gs://bucket/ab?AUTH=implicit"),
        ("s3://bucket/a", "gs://bucket/a?AUTH=implicit"),
        ("azure://box/", f"azure://box/a?{AZURE}"),
        ("azure://box/?AZURE_ACCOUNT_NAME=other", f"azure://box/a?{AZURE}"),
        ("azure://box/?AZURE_ACCOUNT_NAME=acct", f"azure://box/a?{AZURE}&AZURE_ENDPOINT=https://elsewhere.example"),
        ("azure://box/?AZURE_ACCOUNT_NAME=acct", f"azure://box/a?{AZURE}&AZURE_ENVIRONMENT=AZURECHINACLOUD"),
        ("azure://box/?AZURE_ACCOUNT_NAME=acct", "azure://box/a?conn_id=x&AZURE_ENDPOINT=https://elsewhere.example"),
    ],
)
def test_entries_of_other_stores_allow_nothing_else(entry: str, uri: str) -> None:
    with pytest.raises(Refused, match="is not below any of SPANVAULT_ALLOWED_DESTINATIONS"):
        check(allowed(entry), uri)


def test_a_keys_endpoint_needs_an_entry() -> None:
    entry = "aws-kms:///?AWS_ENDPOINT=https%3A%2F%2Fkms.example"
    there = KmsUri.parse("aws:///alias/a?AUTH=implicit&REGION=us-east-1&AWS_ENDPOINT=https://KMS.example/")
    allowed().check_key_service(there)
    allowed("s3://bucket/", entry).check_key_service(there)
    for settings in (
        allowed("s3://bucket/"),
        allowed("s3://bucket/?AWS_ENDPOINT=https://kms.example"),
        allowed("aws-kms:///?AWS_ENDPOINT=https://kms.example:444"),
    ):
        with pytest.raises(Refused, match="not in SPANVAULT_ALLOWED_DESTINATIONS, which would need an entry aws-kms:///"):
            settings.check_key_service(there)


def test_the_clouds_own_key_services_need_no_entry() -> None:
    for text in (
        "aws:///alias/a?AUTH=implicit&REGION=us-east-1",
        "gs:///projects/p/locations/l/keyRings/r/cryptoKeys/k?AUTH=implicit",
        f"azure-kms:///key/{'0' * 32}?AZURE_VAULT_NAME=vault&AUTH=implicit",
    ):
        allowed("s3://bucket/").check_key_service(KmsUri.parse(text))


def test_an_entry_for_a_key_service_is_no_place_for_backups() -> None:
    settings = allowed("aws-kms:///?AWS_ENDPOINT=https://kms.example")
    with pytest.raises(Refused, match="is not below any of SPANVAULT_ALLOWED_DESTINATIONS"):
        check(settings, "s3://bucket/a?conn_id=x&AWS_ENDPOINT=https://kms.example")
