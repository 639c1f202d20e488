"""The object zoo, what lies around a database's own objects, and what changes before an incremental backup."""

from __future__ import annotations

CLUSTER = """
CREATE ROLE zoo_owner NOLOGIN CREATEDB CREATEROLE;
CREATE ROLE "zoo ""reader"";" LOGIN PASSWORD 'it''s; secret' CONNECTION LIMIT 3 VALID UNTIL '2031-02-03 04:05:06+00';
CREATE ROLE zoo_group NOLOGIN NOINHERIT;
CREATE ROLE zoo_admin SUPERUSER REPLICATION BYPASSRLS;
GRANT zoo_group TO "zoo ""reader"";" WITH INHERIT FALSE, SET TRUE, ADMIN FALSE;
GRANT zoo_group TO zoo_owner WITH INHERIT TRUE, SET FALSE, ADMIN TRUE;
GRANT pg_read_all_data TO zoo_group;
SET ROLE zoo_owner;
GRANT zoo_group TO zoo_admin;
RESET ROLE;
COMMENT ON ROLE zoo_group IS 'a group; of the zoo';
ALTER ROLE zoo_owner SET work_mem = '7MB';
ALTER ROLE zoo_owner SET search_path = "a, b", public;
ALTER ROLE ALL SET lock_timeout = '50s';
GRANT SET ON PARAMETER log_min_duration_statement TO zoo_group;
GRANT ALTER SYSTEM ON PARAMETER work_mem TO zoo_owner WITH GRANT OPTION;
"""
# With the database's name in place of {name}, on the maintenance database.
DATABASE = """
COMMENT ON DATABASE {name} IS 'all kinds; ''quoted''';
ALTER DATABASE {name} SET search_path = public, "zoo b";
ALTER DATABASE {name} SET default_transaction_read_only = on;
ALTER DATABASE {name} SET statement_timeout = '3h';
ALTER DATABASE {name} SET "zoo.custom" = 'it''s; "so"';
ALTER DATABASE {name} CONNECTION LIMIT 77;
ALTER ROLE zoo_owner IN DATABASE {name} SET work_mem = '9MB';
ALTER ROLE "zoo ""reader"";" IN DATABASE {name} SET DateStyle = 'German';
ALTER DATABASE {name} OWNER TO zoo_owner;
GRANT CONNECT, TEMPORARY ON DATABASE {name} TO "zoo ""reader"";" WITH GRANT OPTION;
REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC;
"""

OUTSIDE = """
CREATE PUBLICATION theirs FOR TABLE zoo.target (id), zoo.watched WHERE (n > 0) WITH (publish = 'insert, update');
CREATE PUBLICATION "all; of it" FOR TABLES IN SCHEMA zoo, TABLE "zoo b".leaf WITH (publish_via_partition_root);
CREATE PUBLICATION everything FOR ALL TABLES WITH (publish = 'truncate');
COMMENT ON PUBLICATION theirs IS 'a publication';
CREATE SUBSCRIPTION theirs_too CONNECTION 'host=192.0.2.1 dbname=x user=u password=pw' PUBLICATION p1, p2
    WITH (connect = false, slot_name = 'theirs_too', binary = true);
CREATE SUBSCRIPTION without_slot CONNECTION 'host=192.0.2.1' PUBLICATION p3 WITH (connect = false, slot_name = NONE);
COMMENT ON SUBSCRIPTION theirs_too IS 'a subscription';
CREATE FOREIGN DATA WRAPPER zoo_wrapper OPTIONS (debug 'it''s; true');
CREATE SERVER far TYPE 'kind' VERSION '1.2' FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '192.0.2.1', dbname 'x;');
CREATE SERVER bare FOREIGN DATA WRAPPER zoo_wrapper;
CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'u', password 'p''w;');
CREATE USER MAPPING FOR zoo_owner SERVER far OPTIONS (user 'v', password_required 'false');
CREATE FOREIGN TABLE zoo.distant (id int OPTIONS (column_name 'i d') NOT NULL, v text DEFAULT 'd', CHECK (id > 0)) SERVER
    far OPTIONS (table_name 't"x');
CREATE TABLE zoo.half_far (id int) PARTITION BY LIST (id);
CREATE FOREIGN TABLE zoo.far_half PARTITION OF zoo.half_far FOR VALUES IN (1) SERVER far;
COMMENT ON FOREIGN TABLE zoo.distant IS 'far';
COMMENT ON SERVER far IS 'a server';
COMMENT ON FOREIGN DATA WRAPPER zoo_wrapper IS 'a wrapper';
GRANT USAGE ON FOREIGN SERVER far TO zoo_group;
GRANT USAGE ON FOREIGN DATA WRAPPER zoo_wrapper TO zoo_group;
ALTER DEFAULT PRIVILEGES FOR ROLE zoo_owner IN SCHEMA zoo GRANT SELECT ON TABLES TO zoo_group;
ALTER DEFAULT PRIVILEGES FOR ROLE zoo_owner REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SEQUENCES TO "zoo ""reader"";";
CREATE FUNCTION zoo.handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE TRUSTED LANGUAGE zoo_language HANDLER zoo.handler;
COMMENT ON LANGUAGE zoo_language IS 'a language';
CREATE TRANSFORM FOR zoo.pair LANGUAGE zoo_language (FROM SQL WITH FUNCTION prsd_lextype(internal));
SELECT lo_from_bytea(4711, 'a large object');
COMMENT ON LARGE OBJECT 4711 IS 'large';
GRANT SELECT ON LARGE OBJECT 4711 TO zoo_group;
"""

# The last piece: from here on DDL in the database leaves a row, which a restore must not do.
EVENT_TRIGGERS = """
CREATE TABLE zoo.ddl (n bigserial, tag text, event text);
CREATE FUNCTION zoo.on_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS
    $$ BEGIN INSERT INTO zoo.ddl (tag, event) VALUES (tg_tag, tg_event); END $$;
CREATE EVENT TRIGGER zoo_drop ON sql_drop EXECUTE FUNCTION zoo.on_ddl();
CREATE EVENT TRIGGER zoo_end ON ddl_command_end EXECUTE FUNCTION zoo.on_ddl();
CREATE EVENT TRIGGER zoo_start ON ddl_command_start WHEN TAG IN ('DROP SCHEMA', 'REFRESH MATERIALIZED VIEW') EXECUTE
    FUNCTION zoo.on_ddl();
CREATE EVENT TRIGGER zoo_always ON table_rewrite EXECUTE FUNCTION zoo.on_ddl();
CREATE EVENT TRIGGER "zoo off" ON ddl_command_end EXECUTE FUNCTION zoo.on_ddl();
ALTER EVENT TRIGGER "zoo off" DISABLE;
ALTER EVENT TRIGGER zoo_always ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER zoo_end IS 'an event trigger';
"""

# Objects that come, go and change between a full backup and an incremental one.
CHANGES = """
ALTER TYPE zoo.colour RENAME VALUE 'green' TO 'grass';
ALTER TYPE zoo.pair ADD ATTRIBUTE c date CASCADE;
ALTER TABLE zoo.by_range ATTACH PARTITION zoo.by_range_gone FOR VALUES FROM ('2030-01-01') TO ('2031-01-01');
ALTER TABLE zoo.by_range DETACH PARTITION zoo.by_range_old;
CREATE TABLE zoo.by_range_27 PARTITION OF zoo.by_range FOR VALUES FROM ('2027-01-01') TO ('2027-07-01');
INSERT INTO zoo.by_range VALUES (1, '2027-02-02', 'new part');
UPDATE zoo.by_range SET at = '2027-03-03' WHERE at = '2028-08-08';
ALTER TABLE zoo.mascot NO INHERIT zoo.thing;
ALTER VIEW zoo.plain_view RENAME TO renamed_view;
DROP VIEW zoo.checked_all;
CREATE OR REPLACE FUNCTION zoo.is_odd(v int) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT v % 2 <> 0';
DROP INDEX zoo.hashed;
ALTER INDEX zoo.brinned RENAME TO brinned_again;
ALTER TABLE zoo.constraints VALIDATE CONSTRAINT unproved_fk;
ALTER TABLE zoo.columns RENAME plain TO "pl;ain";
ALTER TABLE zoo.columns ALTER other DROP IDENTITY, ADD COLUMN volatile_one text DEFAULT md5(random()::text), DROP COLUMN
    pairs;
UPDATE zoo.columns SET "pl;ain" = 'changed' WHERE id = 7;
INSERT INTO zoo.columns ("pl;ain", other) VALUES ('added', 4);
SELECT nextval('zoo.free'), nextval('zoo.descending');
ALTER SEQUENCE zoo.at_limit MAXVALUE 9;
REFRESH MATERIALIZED VIEW zoo.empty;
REFRESH MATERIALIZED VIEW zoo.z_first WITH NO DATA;
DROP MATERIALIZED VIEW zoo."0 hidden";
ALTER TABLE zoo.watched ENABLE TRIGGER off, DISABLE TRIGGER late;
ALTER TABLE zoo.secret NO FORCE ROW LEVEL SECURITY;
ALTER POLICY own ON zoo.secret TO PUBLIC;
DROP PUBLICATION everything;
ALTER PUBLICATION theirs DROP TABLE zoo.watched;
ALTER SUBSCRIPTION without_slot SET (synchronous_commit = off);
ALTER EVENT TRIGGER zoo_drop DISABLE;
REVOKE USAGE ON FOREIGN SERVER far FROM zoo_group;
COMMENT ON TABLE zoo.target IS 'a comment that came later';
ALTER SCHEMA "zoo b" RENAME TO "zoo c";
DROP TABLE zoo.nothing;
ALTER TABLE zoo.scratch SET LOGGED;
ALTER TABLE zoo.typed NOT OF;
"""
