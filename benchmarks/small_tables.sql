-- {tables} small tables, as applications with many modules or tenants have them: two hundred rows each, a key and an index.
-- Deterministic.
do $$
begin
    for number in 0 .. {tables} - 1 loop
        execute format('create table module_%s (id integer primary key, parent integer, name text not null, '
            'amount numeric(12,2), made timestamptz not null, settings jsonb)', number);
        execute format('insert into module_%s select i, nullif(i - 1, 0), md5(i::text), (i * 37 %% 9000) / 100.0, '
            'timestamptz ''2026-01-01 00:00:00+00'' + i * interval ''1 minute'', jsonb_build_object(''n'', i, ''on'', i %% 3 = 0) '
            'from generate_series(1, 200) i', number);
        execute format('create index on module_%s (name)', number);
    end loop;
end $$;
