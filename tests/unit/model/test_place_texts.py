"""The URIs of a backup as one text: what is read, what is refused, which place a node's files go to, what is shown."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spanvault.errors import BadInput, Refused
from spanvault.model.locality import Locality
from spanvault.model.places import Places, place_name
from spanvault.model.uri import StorageUri

DEFAULT = "file:///a?COCKROACH_LOCALITY=default"
EU = "file:///eu?COCKROACH_LOCALITY=region%3Deu"
US = "file:///us?COCKROACH_LOCALITY=region%3Dus"
ZONE = "file:///zone?COCKROACH_LOCALITY=zone%3Da"
KEYS = "AWS_ACCESS_KEY_ID=AKIA1&AWS_SECRET_ACCESS_KEY=hunter2"
SECRET = "hunter2"


def tiers(*names: str) -> Places:
    """A default and a folder for each tier."""
    return Places.of([DEFAULT, *(f"file:///{number}?COCKROACH_LOCALITY={name}" for number, name in enumerate(names))])


@pytest.mark.parametrize("uri", ["file:///a/b", "file:///a/b?COCKROACH_LOCALITY=default"])
def test_one_uri_is_the_default(uri: str) -> None:
    places = Places.parse(uri)
    assert (places.default, places.others, places.localities) == (StorageUri.parse(uri), (), ("default",))
    assert places.revealed() == places.redacted() == uri
    assert places.choose(Locality.parse("region=eu")) is None


def test_of_several_the_order_says_nothing_of_the_default() -> None:
    for text in ("\n".join([DEFAULT, US, EU]), "\n".join([US, DEFAULT, EU])):
        places = Places.parse(text)
        assert places.default == StorageUri.parse(DEFAULT)
        assert places.others == (("region=us", StorageUri.parse(US)), ("region=eu", StorageUri.parse(EU)))
        assert places.localities == ("default", "region=eu", "region=us")
        assert places == Places.of(text.split("\n")) == Places.parse(places.revealed())


def test_secrets_are_shown_by_revealed_alone() -> None:
    text = "\n".join([
        f"s3://bucket/a?{KEYS}&COCKROACH_LOCALITY=default",
        f"s3://bucket/eu?{KEYS}2&COCKROACH_LOCALITY=region%3Deu",
    ])
    places = Places.parse(text)
    assert places.revealed() == text
    assert SECRET not in places.redacted() + repr(places) + str(places)
    assert places.redacted() == text.replace(f"{SECRET}2", "redacted").replace(SECRET, "redacted")


@pytest.mark.parametrize(
    ("uris", "sentence"),
    [
        ([EU], "COCKROACH_LOCALITY region=eu is invalid for a single location; leave it out of file:///eu?COCKROACH_LOCALITY="),
        ([DEFAULT, "file:///b"], "Several URIs are given, but file:///b does not say which locality it is for: add COCKROACH_"),
        ([EU, US], "Of several URIs exactly one must have COCKROACH_LOCALITY=default, not none."),
        (
            [DEFAULT, DEFAULT.replace("/a", "/b"), EU],
            "Of several URIs exactly one must have COCKROACH_LOCALITY=default, not 2.",
        ),
        ([DEFAULT, EU, EU.replace("/eu", "/b")], "Several URIs are for the locality region=eu; give one of them."),
        ([DEFAULT, EU, US.replace("region%3Dus", "%20region%20=%20eu")], "Several URIs are for the locality region=eu; give one"),
        (
            [DEFAULT, EU.replace("%3Deu", "%3Da.b"), US.replace("%3Dus", "%3Da%2Bb")],
            "The localities region=a.b and region=a+b have the same name in files, region=a_b; rename one of them.",
        ),
        (
            [DEFAULT, EU.replace("%3Deu", "%3Deu%2Czone%3Da")],
            "file:///eu: COCKROACH_LOCALITY must be default or one tier in the fo",
        ),
        ([DEFAULT, EU.replace("region%3Deu", "eu")], "Locality 'eu': tier must be in the form \"key=value\", but found 'eu'."),
        ([""], "The storage URI has no scheme; use s3://bucket/path, "),
    ],
)
def test_what_is_wrong_is_one_sentence(uris: list[str], sentence: str) -> None:
    for read in (partial(Places.of, uris), partial(Places.parse, "\n".join(uris))):
        with pytest.raises(BadInput) as caught:
            read()
        assert str(caught.value).startswith(sentence)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)


def test_empty_lines_of_a_form_are_no_uris() -> None:
    text = f"  {DEFAULT}\r\n\n{EU}\n"
    assert Places.parse(text) == Places.of([DEFAULT, EU])
    assert Places.parse("file:///a\n") == Places.of(["file:///a"])


def test_a_tier_must_fit_into_a_name() -> None:
    with pytest.raises(BadInput, match=r"The locality region=x+\.\.\. is longer than 120 characters; shorten it"):
        Places.of([DEFAULT, f"file:///b?COCKROACH_LOCALITY=region%3D{'x' * 120}"])


def test_no_sentence_shows_a_secret() -> None:
    s3 = [f"s3://bucket/{name}?{KEYS}{name}" for name in "ab"]
    tagged = [f"{uri}&COCKROACH_LOCALITY=region%3Deu" for uri in s3]
    for uris in (s3, tagged, tagged[:1], [DEFAULT, *tagged], [DEFAULT, s3[0]], [DEFAULT, f"{tagged[0]}%2Czone%3Da"]):
        with pytest.raises(BadInput) as caught:
            Places.of(uris)
        assert SECRET not in str(caught.value)


def test_a_chain_in_an_archive_is_not_extended_whichever_place_it_is() -> None:
    cold = f"s3://bucket/eu?{KEYS}&S3_STORAGE_CLASS=GLACIER&COCKROACH_LOCALITY=region%3Deu"
    Places.of([DEFAULT, EU]).check_extendable()
    with pytest.raises(Refused, match="GLACIER") as caught:
        Places.of([DEFAULT, cold]).check_extendable()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("node", "given", "tier"),
    [
        ("region=eu,zone=a", ("region=eu", "zone=a"), "zone=a"),
        ("zone=a,region=eu", ("region=eu", "zone=a"), "region=eu"),
        ("region=eu,zone=a", ("region=eu", "zone=b"), "region=eu"),
        ("region=eu,zone=a", ("region=us", "zone=b"), None),
        ("region=eu", ("region=eu-west",), None),
        ("region=EU", ("region=eu",), None),
        ("rack=1,region=eu", ("region=eu",), "region=eu"),
        ("", ("region=eu",), None),
    ],
)
def test_the_most_specific_tier_that_has_a_place_is_chosen(node: str, given: tuple[str, ...], tier: str | None) -> None:
    assert tiers(*given).choose(Locality.parse(node)) == tier


def test_spaces_around_a_tiers_words_mean_nothing() -> None:
    places = tiers("%20region%20=%20eu%20,")
    assert places.localities == ("default", "region=eu")
    assert places.choose(Locality.parse(" region = eu ")) == "region=eu"


WORDS = st.sampled_from(["a", "b", "c"])
NODES = st.dictionaries(WORDS, WORDS).flatmap(lambda found: st.permutations(list(found.items())))


@given(node=NODES, given_tiers=st.sets(st.tuples(WORDS, WORDS)))
def test_the_choice_is_cockroachdbs(node: list[tuple[str, str]], given_tiers: set[tuple[str, str]]) -> None:
    """CockroachDB goes through the node's tiers from the last to the first and takes the first that is some URI's, word for
    word, else the default."""
    wanted = None
    for tier in node:
        if tier in given_tiers:
            wanted = f"{tier[0]}={tier[1]}"
    assert tiers(*(f"{key}={value}" for key, value in given_tiers)).choose(Locality(tiers=tuple(node))) == wanted


@pytest.mark.parametrize(
    ("tier", "name"),
    [
        ("region=eu-west-1", "region=eu-west-1"),
        ("dc=a b/c:d", "dc=a_b_c_d"),
        ("r\u00e9gion=\u6771", "r_gion=_"),
        ("a_b=.c", "a_b=_c"),
    ],
)
def test_a_tiers_name_in_files_is_plain(tier: str, name: str) -> None:
    assert place_name(tier) == name
