"""Owners, privileges and policies of roles that are not there."""

from __future__ import annotations

from spanvault.database.postgres.archive import Entry
from spanvault.restore.role_names import missing_roles, policies_for, without_roles


def entry(kind: str, sql: str) -> Entry:
    return Entry(id=1, section="pre-data", catalog=0, oid=0, kind=kind, schema="public", name="t", depends=(), sql=sql)


TABLE = entry(
    "TABLE", 'CREATE TABLE "public"."a;b" (\n    "id" integer\n);\n\n\nALTER TABLE "public"."a;b" OWNER TO "gone ""x""";'
)
ACL = entry(
    "ACL",
    'REVOKE ALL ON TABLE "public"."a;b" FROM "gone";\n'
    'GRANT SELECT ON TABLE "public"."a;b" TO PUBLIC;\n'
    'GRANT SELECT ON TABLE "public"."a;b" TO "reader" WITH GRANT OPTION;\n'
    'SET SESSION AUTHORIZATION "reader";\n'
    'GRANT SELECT ON TABLE "public"."a;b" TO "gone";\n'
    "RESET SESSION AUTHORIZATION;\n"
    'SET SESSION AUTHORIZATION "gone";\n'
    'GRANT SELECT ON TABLE "public"."a;b" TO "reader";\n'
    "RESET SESSION AUTHORIZATION;",
)
DEFAULTS = entry(
    "DEFAULT ACL", 'ALTER DEFAULT PRIVILEGES FOR ROLE "gone" IN SCHEMA "public" GRANT SELECT ON TABLES  TO "reader";'
)
POLICY = entry("POLICY", 'CREATE POLICY "p" ON "public"."t" AS RESTRICTIVE FOR SELECT TO "reader", "gone" USING (true);')


def test_what_names_which_role() -> None:
    assert set(missing_roles([TABLE], ["reader"])) == {'gone "x"'}
    assert set(missing_roles([entry("TYPE", "x;\n\n\nALTER TYPE public.a OWNER TO gone_2;")], [])) == {"gone_2"}
    assert set(missing_roles([ACL], ["reader"])) == {"gone"}
    assert set(missing_roles([ACL], [])) == {"gone", "reader"}
    assert set(missing_roles([DEFAULTS], ["reader"])) == {"gone"}
    assert missing_roles([TABLE, ACL, DEFAULTS], ["reader", "gone", 'gone "x"']) == {}
    assert set(policies_for([POLICY], ["reader"])) == {"gone"}
    assert policies_for([entry("POLICY", 'CREATE POLICY "p" ON "public"."t" USING (true);')], []) == {}


def test_only_what_names_them_goes() -> None:
    assert without_roles(TABLE, {'gone "x"'}) == 'CREATE TABLE "public"."a;b" (\n    "id" integer\n);'
    assert without_roles(DEFAULTS, {"gone"}) == ""
    kept = [line for line in without_roles(ACL, {"gone"}).splitlines() if line]
    assert kept == [
        'GRANT SELECT ON TABLE "public"."a;b" TO PUBLIC;',
        'GRANT SELECT ON TABLE "public"."a;b" TO "reader" WITH GRANT OPTION;',
        'SET SESSION AUTHORIZATION "reader";',
        "RESET SESSION AUTHORIZATION;",
    ]
    assert without_roles(ACL, set()) == ACL.sql


def test_text_that_looks_like_a_privilege_is_left_alone_elsewhere() -> None:
    body = entry("FUNCTION", 'CREATE FUNCTION f() AS $$\nGRANT SELECT ON t TO "gone";\nALTER TABLE t OWNER TO gone;\n$$;')
    assert without_roles(body, {"gone"}) == body.sql
