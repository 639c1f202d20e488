"""Splitting a script of pg_dumpall."""

from __future__ import annotations

from spanvault.database.postgres.roles import statements

SCRIPT = r"""--
-- PostgreSQL database cluster dump; it's long
--

\restrict abcdef

SET default_transaction_read_only = off;
SET standard_conforming_strings = on;

CREATE ROLE "a;b";
ALTER ROLE "a;b" WITH PASSWORD 'it''s; --not a comment
on two lines';
COMMENT ON ROLE "a;b" IS E'back\\slash';
-- User Configurations; none
GRANT "x" TO "a;b" GRANTED BY "postgres";

\unrestrict abcdef
"""


def test_statements_end_at_semicolons_outside_of_names_texts_and_comments() -> None:
    assert list(statements(SCRIPT)) == [
        'CREATE ROLE "a;b";',
        "ALTER ROLE \"a;b\" WITH PASSWORD 'it''s; --not a comment\non two lines';",
        "COMMENT ON ROLE \"a;b\" IS E'back\\\\slash';",
        'GRANT "x" TO "a;b" GRANTED BY "postgres";',
    ]
