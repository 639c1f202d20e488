"""The restore command that a collection and every backup tell is one that restores that very backup."""

from __future__ import annotations

import subprocess

import pytest

from spanvault.collection.readme import restore_command
from spanvault.model.request import RestoreRequest
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget, Target
from spanvault.statement.parse import parse
from tests.kit.collections import write_collection
from tests.kit.servers import server_folder


@pytest.mark.parametrize(
    "target",
    [
        ClusterTarget(),
        DatabaseTarget(names=("shop", "it's")),
        SchemaTarget(names=(("shop", 's"x'),)),
        TableTarget(patterns=(TablePattern(database="shop", schema_name="s", name="$t`"),)),
    ],
    ids=lambda target: target.kind,
)
def test_the_command_parses_to_the_backups_own_target(target: Target) -> None:
    from spanvault.config.connections import EnvironmentConnections
    from spanvault.config.settings import Settings
    from spanvault.storage.registry import open_storage

    with server_folder() as folder:
        storage = open_storage(f"file://{folder}/c", settings=Settings.load(), connections=EnvironmentConnections())
        manifest = write_collection(storage)
    asked = manifest.model_copy(update={"request": manifest.request.model_copy(update={"target": target})})
    text = restore_command(asked, "s3://b/p?conn_id=c", asked.subdir).replace("<user>@<host>", "me@here")
    shell = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    command = shell.stdout.splitlines()
    assert command[:3] == ["spanvault", "sql", "--url"]
    request = parse(command[4])
    assert request == RestoreRequest(target=target, subdir=asked.subdir, collection="s3://b/p?conn_id=c")
