-- Few wide rows with large values stored out of line: {rows} documents of forty short columns, a text of about 60 kB that
-- compresses, and 40 kB of bytes that do not. Deterministic.
create table document (
    id bigint primary key, title text not null, body text, scan bytea, meta jsonb not null,
    {columns}
);
insert into document
select i, 'Document ' || i,
    (select string_agg(md5((i * 7 + n % 97)::text) || ' lorem ipsum dolor sit amet ', '') from generate_series(1, 1000) n),
    (select string_agg(sha512((i * 1000003::bigint + n)::text::bytea), '') from generate_series(1, 640) n),
    jsonb_build_object('pages', i % 50, 'tags', jsonb_build_array('a', 'b', i % 7), 'author', md5((i % 300)::text)),
    {values}
from generate_series(1, {rows}) i;
