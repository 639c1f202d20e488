"""pg_dump's words for objects of older servers, in words that these servers know."""

from __future__ import annotations

import pytest

from spanvault.database.postgres.archive import Entry
from spanvault.restore.older_servers import known_words, of_subscription

SUBSCRIPTION = (
    'CREATE SUBSCRIPTION "s" CONNECTION \'password=x, run_as_owner = true\' PUBLICATION "p, run_as_owner = true"'
    " WITH (connect = false, slot_name = 's', binary = true{}, disable_on_error = true);\n\n"
    'ALTER SUBSCRIPTION "s" OWNER TO "o, run_as_owner = true";'
)
IDENTITY = (
    'ALTER TABLE "s"."t" ALTER COLUMN "id" ADD GENERATED ALWAYS AS IDENTITY (\n    SEQUENCE NAME "s"."t_id_seq"{}\n'
    "    START WITH 1\n    INCREMENT BY 1\n    NO MINVALUE\n    NO MAXVALUE\n    CACHE 1\n);"
)


@pytest.mark.parametrize(
    ("kind", "text", "words", "since"),
    [("SUBSCRIPTION", SUBSCRIPTION, ", run_as_owner = true", 160000), ("SEQUENCE", IDENTITY, "\n    LOGGED", 150000)],
    ids=["subscription", "identity"],
)
def test_words_that_came_later_are_left_out(kind: str, text: str, words: str, since: int) -> None:
    assert known_words(kind, text.format(words), since - 1) == text.format("")
    assert known_words(kind, text.format(words), since) == text.format(words)
    assert known_words(kind, text.format(""), since - 1) == text.format("")
    assert known_words("COMMENT", text.format(words), since - 1) == text.format(words)


@pytest.mark.parametrize(
    ("sql", "about"),
    [
        ("COMMENT ON SUBSCRIPTION \"s\" IS 'x';", True),
        ('SECURITY LABEL FOR "a ""provider""; b" ON SUBSCRIPTION "s" IS \'x\';', True),
        ("SECURITY LABEL FOR selinux ON SUBSCRIPTION s IS 'x';", True),
        ("SECURITY LABEL FOR selinux ON TABLE t IS 'x ON SUBSCRIPTION s';", False),
    ],
)
def test_what_is_said_about_a_subscription_is_known_by_its_words(sql: str, about: bool) -> None:
    entry = Entry(id=1, section="post-data", catalog=0, oid=0, kind="SECURITY LABEL", schema=None, name="x", depends=(), sql=sql)
    assert of_subscription(entry) is about
