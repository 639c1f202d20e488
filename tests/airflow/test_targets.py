"""Names of the form become targets of the engine."""

from __future__ import annotations

import pytest

from spanvault.errors import BadInput
from spanvault.model.target import ClusterTarget, DatabaseTarget, SchemaTarget, TablePattern, TableTarget
from spanvault_airflow.targets import AnyTarget, target_of


@pytest.mark.parametrize(
    ("scope", "names", "expected"),
    [
        ("cluster", "", ClusterTarget()),
        ("database", "shop\n crm \n", DatabaseTarget(names=("shop", "crm"))),
        ("database", ['"odd.name"'], DatabaseTarget(names=("odd.name",))),
        ("schema", "shop.sales\npublic", SchemaTarget(names=(("shop", "sales"), (None, "public")))),
        ("table", ["orders"], TableTarget(patterns=(TablePattern(name="orders"),))),
        ("table", ["sales.orders"], TableTarget(patterns=(TablePattern(schema_name="sales", name="orders"),))),
        ("table", ["ord*"], TableTarget(patterns=(TablePattern(name="ord*"),))),
        ("table", ["shop.sales.*"], TableTarget(patterns=(TablePattern(database="shop", schema_name="sales"),))),
        (
            "table",
            ['shop.sales."a ""b"".c"'],
            TableTarget(patterns=(TablePattern(database="shop", schema_name="sales", name='a "b".c'),)),
        ),
    ],
)
def test_names_are_read_as_in_sql(scope: str, names: str | list[str], expected: AnyTarget) -> None:
    assert target_of(scope, names) == expected


@pytest.mark.parametrize(
    ("scope", "names", "word"),
    [
        ("cluster", "shop", "whole cluster"),
        ("database", " \n", "at least one name"),
        ("database", "shop.public", "shop.public"),
        ("schema", "a.b.c", "a.b.c"),
        ("table", "a.b.c.d", "a.b.c.d"),
        ("table", "a..b", "a..b"),
        ("table", 'a."b', "cannot be read"),
        ("table", "a.b.", "cannot be read"),
        ("galaxy", "", "galaxy"),
    ],
)
def test_names_that_mean_nothing_are_refused(scope: str, names: str, word: str) -> None:
    with pytest.raises(BadInput, match=word.replace(".", r"\.")):
        target_of(scope, names)
