-- A shop's warehouse as benchmarks know it: wide rows of integers, amounts, dates and short texts (TPC-H's lineitem and
-- orders), and a log of events with uuid, jsonb and floats. {rows} is the number of lineitem rows. Deterministic.
create table lineitem (
    l_orderkey bigint not null, l_partkey integer not null, l_suppkey integer not null, l_linenumber integer not null,
    l_quantity numeric(15,2) not null, l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null,
    l_tax numeric(15,2) not null, l_returnflag char(1) not null, l_linestatus char(1) not null, l_shipdate date not null,
    l_commitdate date not null, l_receiptdate date not null, l_shipinstruct char(25) not null, l_shipmode char(10) not null,
    l_comment varchar(44) not null
);
create table orders (
    o_orderkey bigint not null, o_custkey integer not null, o_orderstatus char(1) not null, o_totalprice numeric(15,2) not null,
    o_orderdate date not null, o_orderpriority char(15) not null, o_clerk char(15) not null, o_shippriority integer not null,
    o_updated timestamptz not null, o_comment varchar(79) not null
);
create table events (
    id bigint not null, session uuid not null, happened timestamptz not null, kind text not null, amount double precision,
    payload jsonb not null
);

-- Six words chosen by one number.
create function comment_of(seed integer) returns text language sql immutable parallel safe return (
    select words[1 + (seed & 63) % 56] || ' ' || words[1 + (seed >> 6 & 63) % 56] || ' ' || words[1 + (seed >> 12 & 63) % 56]
        || ' ' || words[1 + (seed >> 18 & 63) % 56] || ' ' || words[1 + (seed >> 24 & 63) % 56] || ' ' || words[1 + (seed >> 9 & 63) % 56]
    from (values (string_to_array(
        'the furiously carefully quickly slyly blithely regular special pending final express ironic even bold silent unusual '
        'packages requests accounts deposits foxes ideas theodolites pinto beans instructions dependencies excuses platelets '
        'asymptotes courts dolphins sleep wake haggle nag use boost affix detect integrate cajole among above along after '
        'across of about according to against around at before behind beneath theodolites ideas quick dogged', ' '))) w (words)
);

insert into lineitem
select i / 4 + 1, abs(hashint4(i)) % 200000 + 1, abs(hashint4(i + 1)) % 10000 + 1, i % 4 + 1, quantity,
    round(quantity * (90000 + abs(hashint4(i)) % 20000) / 100, 2), (abs(hashint4(i + 3)) % 11) / 100.0,
    (abs(hashint4(i + 4)) % 9) / 100.0, (array['R', 'A', 'N', 'N'])[abs(hashint4(i + 5)) % 4 + 1],
    (array['O', 'F'])[abs(hashint4(i + 6)) % 2 + 1], ordered + 1 + abs(hashint4(i + 7)) % 121,
    ordered + 30 + abs(hashint4(i + 8)) % 61, ordered + 2 + abs(hashint4(i + 9)) % 150,
    (array['DELIVER IN PERSON', 'COLLECT COD', 'NONE', 'TAKE BACK RETURN'])[abs(hashint4(i + 10)) % 4 + 1],
    (array['REG AIR', 'AIR', 'RAIL', 'SHIP', 'TRUCK', 'MAIL', 'FOB'])[abs(hashint4(i + 11)) % 7 + 1],
    left(comment_of(hashint4(i + 12)), 10 + abs(hashint4(i + 13)) % 34)
from generate_series(0, {rows} - 1) i,
    lateral (select 1 + abs(hashint4(i + 2)) % 50 as quantity, date '1992-01-01' + abs(hashint4(i / 4)) % 2400 as ordered) o;

insert into orders
select i, abs(hashint4(i)) % 150000 + 1, (array['O', 'F', 'P'])[abs(hashint4(i + 1)) % 3 + 1],
    (abs(hashint4(i + 2)) % 50000000) / 100.0, date '1992-01-01' + abs(hashint4(i)) % 2400,
    (array['1-URGENT', '2-HIGH', '3-MEDIUM', '4-NOT SPECIFIED', '5-LOW'])[abs(hashint4(i + 3)) % 5 + 1],
    'Clerk#' || lpad((abs(hashint4(i + 4)) % 1000)::text, 9, '0'), 0,
    timestamptz '2026-01-01 00:00:00+00' + i * interval '1.7 seconds' + abs(hashint4(i + 5)) % 1000000 * interval '1 microsecond',
    left(comment_of(hashint4(i + 6)), 19 + abs(hashint4(i + 7)) % 60)
from generate_series(1, {rows} / 4) i;

insert into events
select i, md5((i / 20)::text)::uuid,
    timestamptz '2026-01-01 00:00:00+00' + i * interval '0.8 seconds' + abs(hashint4(i)) % 100000 * interval '1 microsecond',
    (array['view', 'search', 'add_to_cart', 'checkout', 'pay', 'refund'])[abs(hashint4(i + 1)) % 6 + 1],
    case when i % 3 = 0 then (abs(hashint4(i + 2)) % 1000000) / 700.0 end,
    jsonb_build_object('user', abs(hashint4(i / 20)) % 100000, 'page', '/p/' || abs(hashint4(i + 3)) % 5000, 'ms', abs(hashint4(i + 4)) % 3000,
        'agent', (array['Mozilla/5.0 (X11; Linux x86_64)', 'Mozilla/5.0 (iPhone)', 'curl/8.5'])[abs(hashint4(i + 5)) % 3 + 1],
        'tags', jsonb_build_array(left(comment_of(i % 40), 5), 'a', i % 7))
from generate_series(1, {rows} / 4) i;

drop function comment_of;
alter table lineitem add primary key (l_orderkey, l_linenumber);
alter table orders add primary key (o_orderkey);
alter table events add primary key (id);
