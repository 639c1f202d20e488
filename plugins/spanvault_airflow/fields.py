"""The fields that several trigger forms have in common. Nothing here takes a secret: Airflow stores and shows what is typed."""

from __future__ import annotations

from typing import Any, Final

from airflow.sdk import Param

from spanvault_airflow.targets import SCOPES

# JSON schema regular expression, also run by the browser: a scheme, and no parameter whose value would be a secret.
_URI: Final = (
    r"[a-z][a-z0-9-]*://(?!.*(SECRET|secret|TOKEN|token|PASSWORD|password|PASSPHRASE|passphrase|CREDENTIALS|ACCOUNT_KEY)"
    r"[A-Za-z_]*=)[^@\s]*"
)
SAFE_URI: Final = f"^{_URI}$"
# In both languages `.` ends at a line's end, so that each line is looked at for itself.
SAFE_PLACES: Final = rf"^\s*{_URI}(\s*\n\s*{_URI})*\s*$"
_SAFE_KEY: Final = SAFE_URI.replace("://", ":///", 1)
_TIERS: Final = r"^$|^\s*[^,=\s]+=[^,=\s]+\s*(,\s*[^,=\s]+=[^,=\s]+\s*)*$"
_SUBDIR: Final = r"^(LATEST|/?\d{4}/\d{2}/\d{2}-\d{6}\.\d{2}/?)$"
_SUBDIR_OR_ID: Final = r"^(LATEST|/?\d{4}/\d{2}/\d{2}-\d{6}\.\d{2}/?|\d{8}-\d{6}\.\d{2}-\d{6})$"
DURATION: Final = r"^(none|([0-9]+(\.[0-9]+)?[dhms])+)$"

_REFERENCE: Final = r"^$|^connection:.+$|^variable:.+$|^env:[A-Za-z_][A-Za-z0-9_]*$"

WHERE, WHAT, HOW, MISSING, CHAIN, KEYS = "Where", "What", "How", "Missing objects", "Chain", "Keys"


def collection(default: str, what: str) -> Param:
    """A collection's URI."""
    return Param(
        default,
        type="string",
        pattern=SAFE_URI,
        title="Collection",
        description_md=(
            f"{what} For example `s3://bucket/path?conn_id=my_s3`, `nodelocal://self/path` or `file:///path`. "
            "No keys or passwords: `conn_id` names an Airflow Connection that holds them."
        ),
        section=WHERE,
    )


def places(default: str, what: str) -> Param:
    """A collection's URI, or its URIs for several localities, one a line."""
    return Param(
        default,
        type="string",
        format="multiline",
        pattern=SAFE_PLACES,
        title="Collection",
        description_md=(
            f"{what} One URI; or several, one a line, that differ in where they are: each with "
            "`COCKROACH_LOCALITY=region%3Deu` (one tier), one of them with `COCKROACH_LOCALITY=default`. For example "
            "`s3://bucket-eu/path?conn_id=my_s3&COCKROACH_LOCALITY=region%3Deu`. No keys or passwords: `conn_id` names an "
            "Airflow Connection that holds them."
        ),
        section=WHERE,
    )


def incremental_location_field(what: str, section: str) -> Param:
    """Where the data of incremental layers is: as `places`, or nothing."""
    return Param(
        None,
        type=["null", "string"],
        format="multiline",
        pattern=SAFE_PLACES,
        title="Incremental location",
        description_md=f"{what} One URI, or for a locality-aware backup one a line. No keys or passwords.",
        section=section,
    )


def cluster(default: str, known: list[str], title: str, what: str) -> Param:
    """A cluster of clusters.yaml."""
    return Param(default, type="string", minLength=1, examples=known, title=title, description_md=what, section=WHERE)


def encryption_fields(passphrase_from: str = "") -> dict[str, Any]:
    """What opens encrypted backups: references only."""
    return {
        "passphrase_from": Param(
            passphrase_from,
            type="string",
            pattern=_REFERENCE,
            title="Passphrase from",
            description_md=(
                "Where the passphrase of an encrypted backup is kept: `connection:ID` (the Connection's password), "
                "`variable:NAME` or `env:NAME`. Never the passphrase itself."
            ),
            section=KEYS,
        ),
        "kms": Param(
            [],
            type="array",
            items={"type": "string", "pattern": _SAFE_KEY},
            title="Keys of key services",
            description_md=(
                "Instead of a passphrase, one URI per line: `aws:///alias/backups?REGION=eu-west-1&conn_id=my_aws`. Any one of "
                "them restores. `conn_id` names an Airflow Connection with the credentials."
            ),
            section=KEYS,
        ),
    }


def execution_locality_field(default: str, what: str) -> Param:
    """Where the work may be done; `what` says what else it means."""
    return Param(
        default,
        type="string",
        pattern=_TIERS,
        title="Execution locality",
        description_md=(
            f"Tiers such as `region=eu`: only workers whose `SPANVAULT_LOCALITY` has them may do the work, and the tasks fail on "
            f"any other. {what} Empty: no restriction."
        ),
        section=WHERE,
    )


def subdir(what: str, *, ids: bool = False) -> Param:
    """A chain of the collection; with `ids` also a single backup by its ID."""
    return Param(
        "LATEST", type="string", pattern=_SUBDIR_OR_ID if ids else _SUBDIR, title="Backup", description_md=what, section=WHERE
    )


def target_fields(verb: str) -> dict[str, Any]:
    """What to back up or restore."""
    return {
        "scope": Param(
            "cluster",
            type="string",
            enum=list(SCOPES),
            title="Scope",
            description=f"What to {verb}: everything, or what is named below.",
            section=WHAT,
        ),
        "names": Param(
            [],
            type="array",
            items={"type": "string", "minLength": 1},
            title="Names",
            description_md=(
                "One per line: `shop` (a database), `shop.public` (a schema), `shop.public.orders` or `shop.public.*` (tables)."
            ),
            section=WHAT,
        ),
    }
