"""Schema archives of pg_dump (custom format): what is in one, as SQL per entry, and pg_restore of a choice of entries.

`pg_restore --verbose --file=-` writes an archive as SQL, each entry under a header that names its id, catalog, OID,
dependencies, type, schema and name. That is more exact than the table of contents of `--list`, whose lines run names
with spaces together. The list still decides which headers are real: a function's body may contain the like of one.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spanvault.columnar.scratch import full_folder, scratch_file
from spanvault.config.clusters import Endpoint
from spanvault.database.postgres.connect import APPLICATION_NAME, options_text, tool_connection
from spanvault.database.postgres.dump import connection_environment, ended_by_signal, too_old
from spanvault.embedded.binaries import tool, tool_environment
from spanvault.errors import BadInput, Busy, Damaged, Permanent, Retryable

Section = Literal["pre-data", "post-data"]

_HEADER = re.compile(
    r"^--\n-- TOC entry (?P<id>\d+) \(class (?P<catalog>\d+) OID (?P<oid>\d+)\)\n"
    r"(?:-- Dependencies: (?P<deps>[\d ]+)\n)?"
    r"-- Name: (?P<name>.*); Type: (?P<kind>[A-Z ]+); Schema: (?P<schema>.*); Owner: (?P<owner>.*?)"
    r"(?:; Tablespace: (?P<tablespace>.*))?\n"
    r"(?:-- Data Pos: \d+\n)?--\n",
    re.MULTILINE,
)
# pg_restore writes this between entries when the next one needs it; its effect lasts until it is written again.
_ACCESS_METHOD = re.compile(r"\n*^SET default_table_access_method = (?P<method>.+);\s*\Z", re.MULTILINE)
_TABLESPACE = re.compile(r"""\n*^SET default_tablespace = (?:''|"(?:[^"]|"")+"|\w+);\s*\Z""", re.MULTILINE)
_DUMPED_BY = re.compile(r"^; *Dumped by pg_dump version: (\d+)", re.MULTILINE)
_LISTED = re.compile(r"^(\d+); ", re.MULTILINE)
_NOT_SQL = re.compile(r"^\\(?:un)?restrict .*\n?|^\\connect .*\n?", re.MULTILINE)
_NEWER_SETTING = re.compile(r"^SET transaction_timeout = 0;\n", re.MULTILINE)  # of 17; our sessions have none
_LOST = re.compile(
    r"server closed the connection|Connection re(?:fused|set)|no connection to the server|terminating connection"
    r"|the database system is|could not (?:send|receive) data"
)  # what libpq and a server that goes away say
# pg_restore 17 and later sets transaction_timeout on every server, and goes on where an older one does not know it.
_UNKNOWN = 'unrecognized configuration parameter "transaction_timeout"'
_UNKNOWN_SETTING = re.compile(rf"^.*error:.*{_UNKNOWN}\n", re.MULTILINE)
_FULL = "No space left on device"  # here or there
_NO_ROOM = re.compile(rf"pg_dump failed: could not (?:write|close)[^:]*: ({_FULL})")  # for what it writes itself
_IGNORED = "errors ignored on restore:"  # said at the end: it got there
_DEADLOCK = "deadlock detected"  # between two of its jobs; the loser's entry is not made
_TAIL = re.compile(r"(?:\n-- Completed on .*)?\s*\n--\n-- PostgreSQL database dump complete\n--\s*\Z")
_SESSION = re.compile(r"\n+SET statement_timeout = 0;\n(?:S.*\n)*SET row_security = off;\s*\Z")


@dataclass(frozen=True)
class Entry:
    """One entry: `id` names it within its archive, `depends` other entries; `sql` makes the object. `owner` is there if
    the archive was read with owners, and the object has one; `tablespace` if it is not the database's own."""

    id: int
    section: Section
    catalog: int
    oid: int
    kind: str
    schema: str | None
    name: str
    depends: tuple[int, ...]
    sql: str
    owner: str | None = None
    tablespace: str | None = None

    @property
    def identity(self) -> tuple[str, str | None, str]:
        """What two archives have in common for the same object."""
        return (self.kind, self.schema, self.name)

    @property
    def display(self) -> str:
        """For people: `table public.orders`."""
        return f"{self.kind.lower()} {self.schema + '.' if self.schema else ''}{self.name}"


def read_archive(archive: Path, *, owners: bool = False) -> tuple[Entry, ...]:
    """All entries in the order in which they are restored; with `owners` their SQL also sets the owner.

    Raises Damaged when pg_restore cannot read the file.
    """
    sections: tuple[Section, ...] = ("pre-data", "post-data")
    return tuple(entry for section in sections for entry in _section(archive, section, owners))


def dumped_by(archive: Path) -> int:
    """The major version of the pg_dump that wrote the archive. Raises Damaged when pg_restore cannot read the file."""
    found = _DUMPED_BY.search(_run("pg_restore", ["--list", str(archive)], reading=archive))
    if found is None:
        raise Damaged("The schema archive does not say which pg_dump wrote it.")
    return int(found[1])


def dump_now(endpoint: Endpoint, database: str, archive: Path, folder: Path) -> None:
    """Write the schema that a database has now to `archive`, whose bytes lie in `folder`, in the form of a backup's schema
    archive.

    Raises Permanent with pg_dump's reason: BadInput for missing privileges. Retryable on a lost connection and a full disk.
    """
    arguments = ["--format=custom", "--schema-only", "--quote-all-identifiers"]
    arguments += ["--exclude-schema=spanvault", f"--file={archive}", f"--dbname={tool_connection(endpoint, database)}"]
    try:
        _run("pg_dump", arguments, connection_environment(endpoint, database))
    except Retryable as error:
        if (full := _NO_ROOM.search(str(error))) is not None:
            raise full_folder(folder, full[1]) from None
        raise


def restore_entries(
    endpoint: Endpoint,
    database: str,
    archive: Path,
    entries: Sequence[Entry],
    *,
    section: Section,
    jobs: int,
    with_grants: bool,
    with_tablespaces: bool,
    purpose: str,
    settings: Mapping[str, str],
    scratch: Path | None = None,
) -> None:
    """Run the SQL of these entries' section on `database`, `jobs` at a time, dependencies first.

    Every entry is a transaction of its own; the sessions' application_name is `spanvault <purpose>`, and they
    have these `settings`. An entry that fails does not keep the others from being made. `scratch` is the folder for
    temporary files. Raises Permanent with the first error that PostgreSQL reported, Busy when two of
    the jobs stood in each other's way.
    """
    with _list_of(entries, scratch) as chosen:
        arguments = [
            f"--section={section}",
            f"--use-list={chosen}",
            f"--jobs={jobs}",
            *([] if with_tablespaces else ["--no-tablespaces"]),
            "--no-password",
            *([] if with_grants else ["--no-owner", "--no-privileges"]),
            f"--dbname={tool_connection(endpoint, database)}",
            str(archive),
        ]
        environment = {**connection_environment(endpoint, database), "PGAPPNAME": f"{APPLICATION_NAME} {purpose}"[:63]}
        environment["PGOPTIONS"] = f"{environment['PGOPTIONS']} {options_text(dict(settings))}".strip()
        _run("pg_restore", arguments, environment)


def drop_statements(archive: Path, entries: Iterable[Entry], scratch: Path | None = None) -> str:
    """SQL that removes the objects of these entries, those that depend on others first; absent ones are no error."""
    with _list_of(entries, scratch) as chosen:
        script = _run("pg_restore", ["--clean", "--if-exists", "--no-owner", "--file=-", f"--use-list={chosen}", str(archive)])
    before_first_entry = re.split(r"^--\n-- Name: ", script, maxsplit=1, flags=re.MULTILINE)[0]
    return _NEWER_SETTING.sub("", _NOT_SQL.sub("", before_first_entry))


@contextmanager
def _list_of(entries: Iterable[Entry], scratch: Path | None) -> Iterator[Path]:
    """A file that names these entries for pg_restore."""
    with scratch_file(scratch, ".list") as (file, path):
        file.write("".join(f"{entry.id}; {entry.kind}\n" for entry in entries).encode())
        file.flush()
        yield path


def _section(archive: Path, section: Section, owners: bool) -> Iterator[Entry]:
    create = ["--create"] if section == "pre-data" else []
    owner = [] if owners else ["--no-owner"]
    common = [f"--section={section}", *create, *owner, str(archive)]
    missing = set(_LISTED.findall(_run("pg_restore", ["--list", *common], reading=archive)))
    script = _run("pg_restore", ["--verbose", "--file=-", *common], reading=archive)
    headers = []
    for match in _HEADER.finditer(script):
        if match["id"] in missing:
            missing.remove(match["id"])
            headers.append(match)
    if missing:
        raise Damaged(f"The schema archive cannot be understood: entry {min(missing)} is listed and not there.")
    return _entries(script, headers, section, owners)


def _entries(script: str, headers: list[re.Match[str]], section: Section, owners: bool) -> Iterator[Entry]:
    method = _ACCESS_METHOD.search(script[: headers[0].start()]) if headers else None
    for position, header in enumerate(headers):
        end = headers[position + 1].start() if position + 1 < len(headers) else len(script)
        body = _SESSION.sub("", _TAIL.sub("", _NOT_SQL.sub("", script[header.end() : end])))
        following = _ACCESS_METHOD.search(body)
        statement = _TABLESPACE.sub("", body[: following.start()] if following else body).strip()
        prefix = f"SET default_table_access_method = {method['method']};\n" if method and _has_storage(header["kind"]) else ""
        yield Entry(
            id=int(header["id"]),
            section=section,
            catalog=int(header["catalog"]),
            oid=int(header["oid"]),
            kind=header["kind"],
            schema=None if header["schema"] == "-" else header["schema"],
            name=header["name"],
            depends=tuple(dict.fromkeys(int(number) for number in (header["deps"] or "").split())),
            sql=prefix + statement,
            tablespace=header["tablespace"],
            owner=header["owner"] if owners and header["owner"] not in {"", "-"} else None,
        )
        method = following or method


def _has_storage(kind: str) -> bool:
    return kind in {"TABLE", "MATERIALIZED VIEW"}


def _run(program: str, arguments: list[str], environment: dict[str, str] | None = None, reading: Path | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - our own program and arguments, no shell
        [os.fspath(tool(program)), *arguments],
        env=environment or tool_environment(),
        capture_output=True,
        check=False,
    )
    # Not read as text: that would turn each carriage return of a name, a literal or a function's body into a newline.
    output, errors = done.stdout.decode("utf-8"), done.stderr.decode("utf-8", errors="replace")
    if done.returncode == 0 or _only_unknown_setting(errors):
        return output
    if done.returncode < 0:  # no word on the archive, nor on the server
        raise ended_by_signal(program, done.returncode)
    told = _UNKNOWN_SETTING.sub("", errors)
    if (outdated := too_old(program, told)) is not None:
        raise outdated
    reason = _first_error(told)
    if reading is not None:
        raise Damaged(f"The schema archive cannot be read: {reason}.")
    if _DEADLOCK in told:
        raise Busy(f"{program} failed: {reason}.")
    kind = Retryable if _LOST.search(told) or _FULL in reason else BadInput if "permission denied" in reason else Permanent
    raise kind(f"{program} failed: {reason}.")


def _only_unknown_setting(stderr: str) -> bool:
    # Of several jobs' errors pg_restore counts some once and some not at all, and their lines may run into each other.
    return _IGNORED in stderr and stderr.count("error:") == stderr.count(_UNKNOWN)


def _first_error(stderr: str) -> str:
    """pg_restore's first error with the server's DETAIL, on one line."""
    lines = stderr.strip().splitlines()
    first = next((position for position, line in enumerate(lines) if "error:" in line), max(len(lines) - 1, 0))
    text = lines[first].split("error:", 1)[-1].strip() if lines else "no reason given"
    detail = next((line.strip() for line in lines[first + 1 : first + 4] if line.startswith("DETAIL:")), "")
    return f"{text} {detail}".strip().rstrip(".")
