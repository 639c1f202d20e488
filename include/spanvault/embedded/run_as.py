"""Running servers that refuse root: as `nobody`, without runuser, sudo or a new account.

A process of root starts such a server with the user, group and groups of `nobody` (set in the child, between fork and
exec). Anybody else's process starts it as itself, and every function here does nothing.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import TypedDict

from spanvault.errors import BadInput


class Identity(TypedDict, total=False):
    """Keyword arguments of subprocess.Popen that decide whom the child runs as; empty: as its parent."""

    user: int
    group: int
    extra_groups: list[int]


def server_identity() -> Identity:
    """Whom servers that refuse root run as. Raises BadInput if this machine has no user `nobody`."""
    if os.geteuid() != 0:
        return {}
    try:
        account = pwd.getpwnam("nobody")
    except KeyError:
        raise BadInput(
            "PostgreSQL refuses to run as root and this machine has no user `nobody`; run this as a normal user."
        ) from None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def make_server_directory(directory: Path) -> None:
    """Create `directory` if need be and give it to the server's user.

    Raises BadInput if that user could not enter it because a folder above it is closed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    identity = server_identity()
    if not identity:
        return
    os.chown(directory, identity["user"], identity["group"])
    closed = closed_folder(directory)
    if closed:
        raise BadInput(
            f"The server runs as `nobody` because PostgreSQL refuses root, and {closed} is closed to other users; "
            "choose another folder or open that one with chmod o+x."
        )


def give_to_server(path: Path) -> None:
    """Make the server's user the owner of the file `path`."""
    identity = server_identity()
    if identity:
        os.chown(path, identity["user"], identity["group"])


def closed_folder(path: Path) -> Path | None:
    """The outermost folder above `path` that other users cannot enter, or None."""
    for folder in reversed(path.resolve().parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None
