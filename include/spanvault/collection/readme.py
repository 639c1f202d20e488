"""README.txt of a collection, and the command that restores from it."""

from __future__ import annotations

import contextlib
import re

from spanvault.collection.layout import README_KEY
from spanvault.errors import AlreadyExists
from spanvault.model.manifest import Manifest
from spanvault.model.request import EncryptionOptions, RestoreRequest, ShowBackupsRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget
from spanvault.statement.render import render
from spanvault.storage.base import Storage

_TEXT = """\
This is a Spanvault collection: backups of one PostgreSQL cluster.

To restore the newest backup (into an empty cluster, or beside what is there WITH new_db_name = '...'):

    {restore}

To see what is here:

    {show}

Replace what is in angle brackets, and "redacted" parts of a URI by the real secret. A copy of this folder is as good
as the folder: give its own URI instead. An encrypted backup needs its key, too: WITH encryption_passphrase_from = 'prompt', or
WITH kms = '<URI of the key>'.

    COLLECTION.json        which collection and which cluster
    metadata/index/        a cache for listings; it can be rebuilt
    YYYY/MM/DD-HHMMSS.CC/  one backup: chain/000000.json is its manifest, which names every other file of it

Data files are Parquet; docs/format.md of Spanvault says how to read a backup without Spanvault. Never change, rename or
delete single files: a backup is whole or of no use.
"""


def restore_command(manifest: Manifest, uri: str, subdir: str = "LATEST", keys: EncryptionOptions | None = None) -> str:
    """The shell command that restores what the backup holds; `uri` as `display_uri` has it. What it says of `keys` is no
    secret: a passphrase is asked for."""
    if keys is not None and not keys.kms:
        keys = EncryptionOptions(passphrase_from="prompt")  # noqa: S106 - where it comes from
    target = manifest.request.target
    return _command(render(RestoreRequest(target=target, subdir=subdir, collection=uri, encryption=keys or EncryptionOptions())))


def write_readme(storage: Storage, manifest: Manifest, *, encrypted: bool) -> None:
    """Write README.txt if it is not there; its example restores what `manifest` holds. It is never encrypted, so of an
    `encrypted` backup it names no databases or tables."""
    if encrypted and not isinstance(manifest.request.target, ClusterTarget):
        unnamed = manifest.request.model_copy(update={"target": DatabaseTarget(names=("<database>",))})
        manifest = manifest.model_copy(update={"request": unnamed})
    text = _TEXT.format(
        restore=restore_command(manifest, storage.display_uri),
        show=_command(render(ShowBackupsRequest(collection=storage.display_uri))),
    )
    with contextlib.suppress(AlreadyExists):
        storage.put(README_KEY, text.encode(), create_only=True)


def _command(statement: str) -> str:
    escaped = re.sub(r'([\\"$`])', r"\\\1", statement)
    return f'spanvault sql --url postgresql://<user>@<host>/postgres "{escaped}"'
