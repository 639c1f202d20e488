"""Schema archives and global objects by PostgreSQL's own tools."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import APPLICATION_NAME, CONNECT_TIMEOUT, tool_connection
from spanvault.embedded.binaries import PG_BIN_VARIABLE, tool, tool_environment
from spanvault.errors import BadInput, Retryable
from spanvault.model.manifest import ObjectReference
from spanvault.storage.base import Storage

_CHUNK = 1 << 20
# What pg_dump and pg_dumpall say of a server, and pg_restore of an archive, that is newer than they are.
_TOO_OLD = re.compile(r"server version mismatch|unsupported version \(1\.\d+\) in file header")


def connection_environment(endpoint: Endpoint, database: str) -> dict[str, str]:
    """libpq's environment for a tool: secrets stay out of the process list."""
    environment = {
        **tool_environment(),
        "PGHOST": endpoint.host,
        "PGPORT": str(endpoint.port),
        "PGUSER": endpoint.user,
        "PGDATABASE": database,
        "PGAPPNAME": f"{APPLICATION_NAME} dump",
        "PGOPTIONS": "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off",
        "PGCLIENTENCODING": "UTF8",
        "PGCONNECT_TIMEOUT": endpoint.parameters.get("connect_timeout", CONNECT_TIMEOUT),
    }
    if endpoint.password is not None:
        environment["PGPASSWORD"] = endpoint.password.get_secret_value()
    for name in ("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl"):
        if name in endpoint.parameters:
            environment[f"PG{name.upper()}"] = endpoint.parameters[name]
    return environment


def dump_schema(endpoint: Endpoint, database: str, snapshot: str, storage: Storage, key: str, path: str) -> ObjectReference:
    """Store the database's whole schema at the snapshot as a pg_dump archive in custom format.

    pg_dump reads tables under the snapshot, but prints definitions from the live catalogs: the caller compares catalog
    fingerprints around it. Raises Retryable when an object vanished under it, BadInput for missing privileges.
    """
    arguments = [
        "--schema-only", "--format=custom", "--compress=6", f"--snapshot={snapshot}", "--no-password",
        "--lock-wait-timeout=10s", "--quote-all-identifiers",
        "--exclude-schema=spanvault", f"--dbname={tool_connection(endpoint, database)}",
    ]  # fmt: skip
    return _stored(["pg_dump", *arguments], connection_environment(endpoint, database), storage, key, path)


def dump_globals(endpoint: Endpoint, database: str, storage: Storage, key: str, path: str) -> ObjectReference:
    """Store the cluster's roles, memberships, tablespaces and settings of roles as a pg_dumpall script.

    It holds the roles' password hashes, as the server stores them.
    """
    arguments = ["--globals-only", "--no-password", "--quote-all-identifiers", f"--database={database}"]
    arguments += [f"--dbname={tool_connection(endpoint, database)}"]
    return _stored(["pg_dumpall", *arguments], connection_environment(endpoint, database), storage, key, path)


def _stored(command: Sequence[str], environment: dict[str, str], storage: Storage, key: str, path: str) -> ObjectReference:
    """Run a tool and stream its output into an object; nothing becomes visible unless the tool ends well."""
    digest, size = hashlib.sha256(), 0
    with ThreadPoolExecutor(1, thread_name_prefix="errors") as beside, storage.open_write(key) as writer:
        process = subprocess.Popen(  # noqa: S603 -- our own tools with our own arguments
            [str(tool(command[0])), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        assert process.stdout is not None and process.stderr is not None  # noqa: S101 -- they are pipes
        errors = beside.submit(_all_of, process.stderr)
        try:
            while chunk := process.stdout.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                writer.write(chunk)
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if status < 0:
            raise ended_by_signal(command[0], status)
        if status != 0:
            raise _failure(command[0], errors.result().decode(errors="replace"))
    return ObjectReference(path=path, sha256=digest.hexdigest(), bytes=size)


def _all_of(stream: IO[bytes]) -> bytes:
    with stream:
        return stream.read()


def ended_by_signal(name: str, status: int) -> Retryable:
    """What is said of a tool that did not end by itself; `status` is the negative signal, as subprocess has it."""
    try:
        by = signal.Signals(-status).name
    except ValueError:
        by = f"signal {-status}"
    return Retryable(f"{name} was ended by {by}, as by a machine that is out of memory; see to that, then try again.")


def too_old(name: str, text: str) -> BadInput | None:
    """What to do if a tool failed with `text` because it is of an older PostgreSQL than what it was to read, else None."""
    if _TOO_OLD.search(text) is None:
        return None
    return BadInput(
        f"{name} is of an older PostgreSQL than what it is to read; let {PG_BIN_VARIABLE} name the folder of a newer one's"
        " programs, or unset it."
    )


def _failure(name: str, text: str) -> BadInput | Retryable:
    lines = [line.split("error:", 1)[-1].strip() for line in text.splitlines() if line.strip()]
    message = next((line for line in lines if line), "no message")
    if (outdated := too_old(name, text)) is not None:
        return outdated
    if "permission denied" in text:
        return BadInput(f"{name} may not read the schema: {message}. `spanvault cluster preflight` prints the GRANTs.")
    return Retryable(f"{name} failed: {message}.")
