"""Commands that people try and that are statements here, or stand elsewhere: answered with the right form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from spanvault.errors import BadInput

_BACKUP = "spanvault sql \"BACKUP ... INTO 'uri'\""
_INCREMENTAL = "spanvault sql \"BACKUP ... INTO LATEST IN 'uri'\""
_RESTORE = "spanvault sql \"RESTORE ... FROM LATEST IN 'uri'\""
_SHOW = "spanvault sql \"SHOW BACKUPS IN 'uri'\""
_COLLECTION = ("check", "compact", "rebuild-index", "sweep", "windows")
_CLUSTER = ("preflight", "uninstall")
HINTS: Mapping[str, str] = {
    "backup": _BACKUP,
    "dump": _BACKUP,
    "full": _BACKUP,
    "incremental": _INCREMENTAL,
    "restore": _RESTORE,
    "show": _SHOW,
    "backups": _SHOW,
    "list": _SHOW,
    **{name: f"spanvault collection {name} 'uri'" for name in _COLLECTION},
    **{name: f"spanvault cluster {name} --cluster NAME" for name in _CLUSTER},
    "release": "spanvault protection release SLOT --cluster NAME",
}


class HintingGroup(TyperGroup):
    """Commands of which unknown ones are answered with what was probably meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the arguments name. Raises BadInput for one that has a hint; whole statements given as a command
        are not repeated in it, because they may hold secrets."""
        words = args[0].split() if args else []
        word = words[0].lower() if words else ""
        if word in HINTS and self.get_command(ctx, args[0]) is None:
            raise BadInput(f"No such command {word!r}; did you mean: {HINTS[word]}")
        return super().resolve_command(ctx, args)
