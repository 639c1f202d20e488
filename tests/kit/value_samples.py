"""Values of every type that a column can have, ordinary ones and the strangest that PostgreSQL takes, as its literals.

The built-in types are those of PostgreSQL 18 (https://www.postgresql.org/docs/18/datatype.html), the others come from the contrib
modules and from OWN_TYPES. tests/postgres/test_value_zoo.py compares the list with the server's catalog.
"""

from __future__ import annotations

EXTENSIONS = ("citext", "cube", "hstore", "intarray", "isn", "lo", "ltree", "seg", "earthdistance", "vector")

OWN_TYPES = """
CREATE SCHEMA "Odd.Schema";
CREATE TYPE mood AS ENUM ('sad', 'it''s, "ok"', '', 'ünï');
CREATE TYPE ended AS ENUM (E'a\\r\\nb', E'\\r', E'\\n');
ALTER TYPE mood ADD VALUE 'first' BEFORE 'sad';
ALTER TYPE mood ADD VALUE 'between' AFTER 'sad';
CREATE DOMAIN amount AS numeric(12, 2);
CREATE DOMAIN small_list AS integer[] CHECK (cardinality(VALUE) < 5);
CREATE DOMAIN filled AS text NOT NULL DEFAULT '' CHECK (VALUE <> 'x');
CREATE TYPE pair AS (i integer, t text);
CREATE TYPE "Nested, (odd)" AS ("a b" pair, "list" pair[], m mood, d amount, b bytea, l small_list);
CREATE TYPE nothing_inside AS ();
CREATE TYPE text_range AS RANGE (subtype = text, collation = "C");
CREATE TABLE "Odd.Schema"."Named, once" (id integer);
CREATE FUNCTION "Odd.Schema"."F"(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
CREATE TEXT SEARCH CONFIGURATION "Odd.Schema"."Config" (COPY = simple);
CREATE TEXT SEARCH DICTIONARY "Odd.Schema"."Dict" (TEMPLATE = simple);
CREATE COLLATION "Odd.Schema"."Coll" (LOCALE = 'C');
CREATE OPERATOR "Odd.Schema".### (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4pl);
"""

_DIGITS = "7" * 999
_DATES = ["0001-01-01", "1582-10-10", "1970-01-01", "2000-02-29", "9999-12-31"]
_TIMES = [
    "0001-01-01 00:00:00",
    "1969-12-31 23:59:59.999999",
    "2016-12-31 23:59:60",
    "2020-01-01 24:00:00",
    "9999-12-31 23:59:59.999999",
]

# Types with a typed form in data files, and values that have it. In one table all columns hold nothing else.
TYPED: dict[str, list[str]] = {
    "smallint": ["-32768", "0", "32767"],
    "integer": ["-2147483648", "-1", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807", "9007199254740993"],
    "boolean": ["true", "false"],
    "real": ["0", "-0", "0.1", "1e-45", "3.4028235e38", "16777217", "NaN", "Infinity", "-Infinity", "1.17549435e-38"],
    "double precision": ["-0", "0", "5e-324", "-2.2250738585072009e-308", "1.7976931348623157e308", "0.30000000000000004", "NaN",
                         "Infinity", "-Infinity", "9007199254740993"],
    "date": _DATES,
    "timestamp without time zone": _TIMES,
    "timestamp with time zone": [*(f"{time}+00" for time in _TIMES), "2024-03-31 02:30:00 Europe/Berlin"],
    "numeric(12,2)": ["0", "-0.00", "0.01", "-9999999999.99", "9999999999.99"],
    "numeric(38,0)": ["99999999999999999999999999999999999999", "-99999999999999999999999999999999999999"],
    "numeric(38,38)": ["0.00000000000000000000000000000000000001", "-0.99999999999999999999999999999999999999"],
    "bytea": [r"\x", r"\x00", r"\x0000005c785c2e0a", r"\xdeadbeef", r"\x22270a0d2c"],
}  # fmt: skip

# What has no typed form.
TEXT: dict[str, list[str]] = {
    "date": ["infinity", "-infinity", "0044-03-15 BC", "4713-01-01 BC", "5874897-12-31"],
    "timestamp without time zone": ["infinity", "-infinity", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59.999999"],
    "timestamp with time zone": ["infinity", "-infinity", "4713-01-01 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00"],
    "timestamp(0) with time zone": ["2020-01-01 00:00:00.5+00", "0001-12-31 23:59:59+00 BC"],
    "numeric(12,2)": ["NaN"],
    "numeric": ["NaN", "Infinity", "-Infinity", "1.10", "1.1", "0.000", "-0.0", "1e-200", "12345678901234567890.1234567890",
                f"{_DIGITS}.000", f"-0.{_DIGITS}000", "1" + "0" * 131_071, "0." + "0" * 16_382 + "1"],
    "numeric(50,3)": ["99999999999999999999999999999999999999999999999.999", "NaN"],
    "numeric(3,-2)": ["12300"],
    "numeric(2,4)": ["0.0012"],
    "text": ["", " ", "NULL", r"\N", r"\.", "\\.\n", '"', '""', '"",', ",", "a\nb", "\n", "\r\n", "\r", "\t", "'", "\\", "\\\\",
             r"\x", "$$", "ünïcødé", "🐘𐍈", "e\u0301 \u0301",
             "\u2028\u200b\ufeff\ufffe\uffff\U0010ffff", "\x01\x7f\x80", "\u202ertl",
             "x" * 5000],
    "character varying": ["", "ab ", r"\."],
    "character varying(10)": ["", "ab ", "äöü", "🐘🐘🐘🐘🐘🐘🐘🐘🐘🐘"],
    "character": [" ", "é"],
    "character(5)": ["", "ab", "  x", "🐘"],
    '"char"': ["a", "", "ÿ", r"\001", r"\200", "\\", '"'],
    "name": ["x", "Ünder score", "", "n" * 63],
    "time without time zone": ["24:00:00", "00:00:00", "23:59:59.999999"],
    "time with time zone": ["24:00:00+15:59:59", "24:00:00-15:59:59", "00:00:00+15:59", "12:00:00.5-11:30"],
    "interval": ["1 year -1 day 00:00:00.000001", "178000000 years", "-178000000 years", "infinity", "-infinity", "0",
                 "-1 mon +1 day", "2147483647 days", "-2147483648 days", "24:00:00", "1 day",
                 "2562047788:00:54.775807", "-2562047788:00:54.775807"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-ffff-4fff-bfff-ffffffffffff"],
    "json": ['{"a": 1,  "a": 2}', "null", '"x"', "[1,\n2]", ' {\t"\\u0000" : 1.00e0 } ', '"\\ud83d\\ude00"'],
    "jsonb": ['{"a": "\\"q\\"", "b": [1, 2.50, null], "": {}}', "null", f'{{"n": {_DIGITS}.10}}', '"\\\\ 🐘\\n"'],
    "jsonpath": ['$."a"[*]?(@ > 1)', "strict $.*", '$."q\\"\\n"'],
    "money": ["$1,234.56", "-$0.01", "-92233720368547758.08", "92233720368547758.07"],
    "bit": ["1"],
    "bit(3)": ["101", "000"],
    "bit varying": ["", "10101", "0" * 70],
    "inet": ["10.0.0.1/8", "::1", "::ffff:1.2.3.4/96"],
    "cidr": ["10.0.0.0/8", "::/0"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "point": ["(1.5,-0)", "(NaN,Infinity)"],
    "line": ["{1,-0,3}", "{0.1,1e-300,NaN}"],
    "lseg": ["[(0,0),(1,1)]"],
    "box": ["(2,2),(0,-0)", "(Infinity,1),(-Infinity,0)"],
    "path": ["[(0,0),(1,1)]", "((0,0),(1,1))"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "circle": ["<(1,2),3>", "<(0,0),0>"],
    "int4range": ["[1,5)", "empty", "(,)"],
    "int8range": ["[-9223372036854775808,9223372036854775807)"],
    "numrange": ["[1.10,2.00]", "(,NaN]"],
    "tsrange": ["[-infinity,infinity]", '("2020-01-01 00:00:00",)'],
    "tstzrange": ["[2020-01-01,infinity)", "[0044-03-15 BC,]"],
    "daterange": ["[2020-01-01,2020-01-02)", "(,infinity)"],
    "int4multirange": ["{[1,3),[5,9)}", "{}"],
    "int8multirange": ["{(,)}"],
    "nummultirange": ["{[1.0,1.00],(5,)}"],
    "tsmultirange": ['{["2020-01-01 00:00:00",infinity)}'],
    "tstzmultirange": ["{(,2020-01-01 BC)}"],
    "datemultirange": ["{[2020-01-01,2020-01-02),[2021-01-01,)}"],
    "tsvector": ["'a':1A 'b''c':2", "", "'\\\\':3 '🐘'"],
    "tsquery": ["'a' & !'b'", "'x':*AB <2> 'y'", ""],
    "pg_lsn": ["16/B374D848", "FFFFFFFF/FFFFFFFF"],
    "oid": ["0", "4294967295"],
    "tid": ["(4294967295,65535)"],
    "xid": ["4294967295"],
    "xid8": ["18446744073709551615"],
    "cid": ["4294967295"],
    "refcursor": ['a "b"', ""],
    "int2vector": ["1 -2", ""],
    "oidvector": ["1 4294967295", ""],
    "txid_snapshot": ["10:20:10,14,15"],
    "pg_snapshot": ["10:20:10,14,15"],
    "aclitem": ["postgres=arw/postgres", "=r*/postgres"],
    "regclass": ["pg_class", '"Odd.Schema"."Named, once"', "0", "4000000000"],
    "regproc": ["now", '"Odd.Schema"."F"', "0"],
    "regprocedure": ["abs(numeric)", '"Odd.Schema"."F"(integer)', "0"],
    "regoper": ["||/", '"Odd.Schema".###', "0"],
    "regoperator": ["+(integer,integer)", '"Odd.Schema".###(integer,integer)', "-(NONE,bigint)", "0"],
    "regtype": ["integer[]", "public.mood", 'public."Nested, (odd)"[]', "0"],
    "regnamespace": ['"Odd.Schema"', "pg_catalog", "0"],
    "regrole": ["postgres", "pg_monitor", "0"],
    "regconfig": ["english", '"Odd.Schema"."Config"', "0"],
    "regdictionary": ["simple", '"Odd.Schema"."Dict"', "0"],
    "regcollation": ['"C"', '"Odd.Schema"."Coll"', "0"],
    "information_schema.sql_identifier": ["x", ""],
    "information_schema.yes_or_no": ["YES"],
    "information_schema.cardinal_number": ["0"],
    "information_schema.character_data": ["", "ü"],
    "information_schema.time_stamp": ["2020-01-01 00:00:00+00"],
    "mood": ["sad", "it's, \"ok\"", "", "ünï", "first", "between"],
    "ended": ["a\r\nb", "\r", "\n"],
    "amount": ["1.50", "NaN", "-0.01"],
    "small_list": ["{1,NULL}", "[5:6]={1,2}", "{}"],
    "pair": ['(1,"a b")', "(,)", '(1,"")', '(1,"x""y,z\\\\")', '(,"\n")'],
    '"Nested, (odd)"': ['("(1,""a b"")","{""(1,x)"",NULL,""(,)""}","it\'s, ""ok""",1.50,"\\\\x00ff","[0:1]={7,8}")', "(,,,,,)"],
    "nothing_inside": ["()"],
    "text_range": ['["",b]', '("\\"",","]', "empty"],
    "citext": ["Ab", "", "ÄÖ"],
    "hstore": ['"a"=>"1", "b"=>NULL, ""=>"", "q\\""=>"\\\\"', ""],
    "cube": ["(1,-0),(2,3)", "()", "(0.1)"],
    "earth": ["(6378168,0,0)"],
    "seg": ["1.50 .. 2.00", "~0.1", "<10", "5 .."],
    "ltree": ["Top.Science_1", ""],
    "lquery": ["Top.*{1,2}.!a|b*@"],
    "ltxtquery": ["Top & !b*@"],
    "query_int": ["1&(2|!3)"],
    "ean13": ["978-0-393-04002-9"],
    "isbn": ["0-393-04002-X"],
    "isbn13": ["978-0-393-04002-9"],
    "ismn": ["M-706700-03-8"],
    "ismn13": ["979-0-706700-03-8"],
    "issn": ["1436-4522"],
    "issn13": ["977-1436-452-00-8"],
    "upc": ["220356483481"],
    "lo": ["4294967295", "0"],
    "vector": ["[1,-0,3.4e38]"],
    "halfvec": ["[1,-0,65504]"],
    "sparsevec": ["{1:1.5,16000:-2}/16000"],
}  # fmt: skip

# Types whose values' text names objects, and changes with those names.
NAMING = {name for name in TEXT if name.startswith("reg")} | {"aclitem"}

# What PostgreSQL prints but never reads: a column can have these types, and rows of a table hold no value but NULL.
UNREADABLE = {
    "pg_node_tree", "pg_ndistinct", "pg_dependencies", "pg_mcv_list", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary",
    "gtsvector", "ghstore", "intbig_gkey", "ltree_gist",
}  # fmt: skip
# The wheel's server is built without libxml2: there an xml column can hold nothing but NULL.
UNSUPPORTED = {"xml"}
# What it holds elsewhere: documents, and pieces of content.
XML = [
    "<a/>", "", " ", "text & more".replace("&", "&amp;"), "<a>1</a><b/>text", "<?xml version=\"1.0\"?><a/>",
    '<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?><ä>ü🐘</ä>', "<!DOCTYPE a [<!ENTITY e \"x\">]><a>&e;</a>",
    "<a><![CDATA[<b> ]] & \\. \\N\t\"q\"]]></a>", "<!-- a -->\n<?pi x?>\r\n<a x='1' y=\"&quot;,{}\"/>\n",
    '<x:a xmlns:x="urn:x"><x:b/></x:a>', f"<big>{'0123456789' * 2000}</big>",
]  # fmt: skip

# Types as primary keys, with two spellings of one value each where equal values may print differently.
KEYS: dict[str, tuple[str, str] | None] = {
    "text": None, '"char"': None, "character(5)": None, "name": None, "bytea": None, "boolean": None, "date": None,
    "timestamp with time zone": None, "time with time zone": None, "uuid": None, "money": None, "bit varying": None, "inet": None,
    "oid": None, "pg_lsn": None, "tsvector": None, "mood": None, "ltree": None, "oidvector": None, "text_range": None,
    "hstore": None,
    "numeric": ("1.10", "1.1000"), "numeric(12,2)": None, "amount": None, "real": ("0", "-0"), "double precision": ("0", "-0"),
    "interval": ("1 day", "24:00:00"), "jsonb": ('{"a": 1.0}', '{"a": 1.00}'), "numrange": ("[1.10,2.00]", "[1.1,2]"),
    "citext": ("Ab", "aB"),
    "pair": None, "cube": None, "seg": None, "isbn": None, "small_list": None,
}  # fmt: skip


def samples(type_name: str) -> list[str]:
    """All values of a type."""
    return [*TYPED.get(type_name, []), *TEXT.get(type_name, [])]


def all_types() -> list[str]:
    """Every type that has values here, in order."""
    return list(dict.fromkeys([*TYPED, *TEXT]))
