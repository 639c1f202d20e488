"""All knobs. Each is set by the environment variable `SPANVAULT_<NAME>`; an empty variable counts as not set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from spanvault.errors import BadInput, Refused
from spanvault.model.kms_uri import KmsUri, key_service_of, same_address
from spanvault.model.locality import Locality
from spanvault.model.uri import StorageUri


class Settings(BaseSettings):
    """The settings of one process. `load()` reads them with errors as sentences."""

    model_config = SettingsConfigDict(env_prefix="SPANVAULT_", frozen=True, extra="forbid", env_ignore_empty=True)

    clusters_file: Path | None = Field(
        default=None, description="The clusters.yaml that names the clusters; not needed where clusters are given by URL."
    )
    external_io_dir: Path = Field(
        default=Path("~/.spanvault/extern"),
        description="The folder that nodelocal://self/ stands for. Every worker must see the same one, so share it.",
    )
    scratch_dir: Path | None = Field(
        default=None,
        description="Where temporary files go (merges, downloads being verified); the system's own place if not set.",
    )
    allowed_destinations: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description=(
            "URIs, separated by spaces or commas, of the places that backups may be written to and read from; everything "
            "below them is allowed too. None: anywhere. An s3 entry allows AWS's own endpoint, or the one in its "
            "AWS_ENDPOINT parameter; an azure-blob entry the storage account in its AZURE_ACCOUNT_NAME parameter, at Azure "
            "or at its AZURE_ENDPOINT. An endpoint and an account that come from a connection (conn_id) are always allowed. "
            "Where this is set, an AWS_ENDPOINT in a key's URI needs an entry aws-kms:///?AWS_ENDPOINT=<endpoint>."
        ),
    )
    locality: str = Field(
        default="",
        description=(
            "Where this worker is, tiers from wide to narrow (region=eu,zone=a). Tasks of a run with an execution locality fail "
            "on a worker that does not match it; one that does not say where it is matches none."
        ),
    )
    collection_base: str = Field(
        default="nodelocal://self/backups",
        description="Where the DAGs keep their collections, each in a folder of its own (full, ...); no secrets, use conn_id.",
    )
    external_io_disable_implicit_credentials: bool = Field(
        default=False, description="Refuse AUTH=implicit: nobody may use the credentials of the machine itself."
    )
    external_io_disable_http: bool = Field(
        default=False,
        description="Refuse AWS_ENDPOINT and AZURE_ENDPOINT in URIs: only the cloud's own endpoints, and those of connections.",
    )
    wait_for_writers: float = Field(
        default=60,
        gt=0,
        le=86400,
        description="Seconds a backup waits for transactions that are open on the source; then a full names them and gives up,"
        " and an incremental goes on beside them without what must be read at its cut.",
    )
    wal_limit: ByteSize = Field(
        default=ByteSize(10 << 30),
        ge=0,
        description=(
            "Bytes of log (such as 10GiB) that one protection may keep on a source's disk. One that keeps more is released by "
            "the next run or `spanvault protection list`: its chain ends, and the next backup is a full one. 0: no limit."
        ),
    )
    storage_connect_timeout: float = Field(default=10, gt=0, le=3600, description="Seconds until a connection must stand.")
    storage_read_timeout: float = Field(
        default=60, gt=0, le=3600, description="Seconds without a byte from the object store after which a call is given up."
    )
    storage_attempts: int = Field(
        default=6, ge=1, le=100, description="Tries of a call to the object store, with growing random pauses in between."
    )
    storage_upload_memory: ByteSize = Field(
        default=ByteSize(32 << 20),
        ge=8 << 20,
        description="Bytes of one object that may be on their way to the object store at a time (such as 32MiB), per writer.",
    )

    storage_rate_limit: ByteSize = Field(
        default=ByteSize(0),
        ge=0,
        description=(
            "Bytes a second (such as 50MB) that one process may read from and write to storages together; 0: no limit. A "
            "backup's own rate_limit holds beside it."
        ),
    )
    storage_calls: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description=(
            "Calls to object stores that one process has under way at a time, a download until its first bytes; 0: no limit."
        ),
    )

    @classmethod
    def load(cls) -> Settings:
        """The settings of the environment. Raises BadInput that names the first wrong variable."""
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = f"SPANVAULT_{first['loc'][0]}".upper() if first["loc"] else "The settings"
            raise BadInput(f"{name} cannot be used: {first['msg'].removeprefix('Value error, ').rstrip('.')}.") from None

    @field_validator("allowed_destinations", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, re.split(r"[\s,]+", value))) if isinstance(value, str) else value

    @field_validator("allowed_destinations")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                if key_service_of(text) is None:
                    StorageUri.parse_prefix(text)
            except BadInput as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("locality")
    @classmethod
    def _tiers(cls, value: str) -> str:
        try:
            return str(Locality.parse(value))
        except BadInput as error:
            raise ValueError(str(error)) from None

    @field_validator("collection_base")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        try:
            uri = StorageUri.parse(value)
        except BadInput as error:
            raise ValueError(str(error)) from None
        if uri.has_inline_secrets:
            raise ValueError("it carries a secret, which Airflow would show; name a connection with ?conn_id= instead")
        return value

    @field_validator("clusters_file", "external_io_dir", "scratch_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value if value is None else value.expanduser().absolute()

    def check_destination(self, uri: StorageUri) -> None:
        """Raise Refused if the settings do not allow `uri`, naming the setting; nothing is contacted."""
        if self.external_io_disable_implicit_credentials and uri.params.get("AUTH") == "implicit":
            raise Refused(f"{uri} uses AUTH=implicit, which SPANVAULT_EXTERNAL_IO_DISABLE_IMPLICIT_CREDENTIALS forbids.")
        named = {"AWS_ENDPOINT", "AZURE_ENDPOINT"}.intersection(uri.params)
        if self.external_io_disable_http and named:
            raise Refused(f"{uri} names an {named.pop()}, which SPANVAULT_EXTERNAL_IO_DISABLE_HTTP forbids.")
        entries = self.allowed_destinations
        prefixes = [StorageUri.parse_prefix(text) for text in entries if key_service_of(text) is None]
        if entries and not any(self._allows(prefix, uri) for prefix in prefixes):
            raise Refused(f"{uri} is not below any of SPANVAULT_ALLOWED_DESTINATIONS ({', '.join(entries)}).")

    def check_key_service(self, uri: KmsUri) -> None:
        """Raise Refused if the key's URI names an endpoint, which would be handed the data key, and the settings do not."""
        endpoint = uri.params.get("AWS_ENDPOINT")
        allowed = {key_service_of(text) for text in self.allowed_destinations}
        if endpoint is not None and allowed and same_address(endpoint) not in allowed:
            raise Refused(
                f"{uri} names an AWS_ENDPOINT that is not in SPANVAULT_ALLOWED_DESTINATIONS, which would need an entry "
                f"aws-kms:///?AWS_ENDPOINT={endpoint}."
            )

    def _allows(self, prefix: StorageUri, uri: StorageUri) -> bool:
        if prefix.scheme in {"file", "nodelocal"}:
            same = prefix.scheme == uri.scheme
            return same and self.local_folder(uri).is_relative_to(self.local_folder(prefix))
        return prefix.contains(uri) and self._same_address(prefix, uri)

    @staticmethod
    def _same_address(prefix: StorageUri, uri: StorageUri) -> bool:
        """Without this, s3://allowed?AWS_ENDPOINT=https://elsewhere, or another's account at Azure, would lead anywhere. A
        connection's own endpoint and account were chosen by whoever administers connections."""
        return (not uri.address and "conn_id" in uri.params) or prefix.address == uri.address

    def local_folder(self, uri: StorageUri) -> Path:
        """The folder that a `file` or `nodelocal` URI stands for, symbolic links followed.

        Raises Refused when a link leads out of external_io_dir.
        """
        if uri.scheme == "file":
            return (Path("/") / uri.path).resolve()
        root = self.external_io_dir.resolve()
        folder = (root / uri.path).resolve()
        if not folder.is_relative_to(root):
            raise Refused(f"{uri} leads out of SPANVAULT_EXTERNAL_IO_DIR ({root}) through a symbolic link.")
        return folder
