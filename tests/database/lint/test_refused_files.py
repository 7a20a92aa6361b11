"""Files that would break the program, give privileges away, block or empty tables, or come from another tool."""

import pytest

from components.access import TABLE_PROFILES
from observatory.database.lint import Finding
from observatory.database.roles.group_roles import GROUP_ROLES
from tests.database.conftest import WriteMigrations
from tests.database.lint.test_contracts import errors, findings

LEDGER = "observatory.schema_migrations"


@pytest.mark.parametrize(
    "sql",
    [
        f"TRUNCATE {LEDGER}",
        f"DELETE FROM {LEDGER} WHERE version > 1",
        f"UPDATE {LEDGER} SET version = 1 WHERE version = 2",
        f"INSERT INTO {LEDGER} (version) VALUES (9)",
        f"INSERT INTO {LEDGER} (version) VALUES " + ", ".join(["(9)"] * 10_001),
        f"WITH gone AS (DELETE FROM {LEDGER} RETURNING 1) SELECT * FROM gone",
        f"SELECT * FROM {LEDGER} FOR UPDATE",
        f"MERGE INTO {LEDGER} USING t ON true WHEN MATCHED THEN DELETE",
        f"ALTER TABLE {LEDGER} ADD COLUMN x int",
        f"DROP TABLE {LEDGER}",
        'DROP TABLE observatory."schema_migrations"',
        'TRUNCATE observatory.U&"schema\\005fmigrations"',
        f"ALTER TABLE {LEDGER} RENAME TO x",
        f"ALTER TABLE {LEDGER} SET SCHEMA public",
        f"LOCK TABLE {LEDGER}",
        f"CREATE INDEX i ON {LEDGER} (version)",
        f"CREATE TRIGGER x BEFORE INSERT ON {LEDGER} EXECUTE FUNCTION fire()",
        f"CREATE RULE r AS ON INSERT TO {LEDGER} DO INSTEAD NOTHING",
        "SET search_path = observatory, public; TRUNCATE schema_migrations",
        "SET search_path = public, observatory; TRUNCATE schema_migrations",
        "DROP SCHEMA observatory CASCADE",
        "ALTER SCHEMA observatory RENAME TO x",
        "SELECT pg_advisory_unlock_all()",
        "SELECT pg_catalog.pg_advisory_unlock(1)",
        "SELECT pg_try_advisory_lock(1, 2)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
        "SELECT pg_cancel_backend(1)",
        "CREATE TABLE x AS SELECT pg_advisory_lock(1)",
        "DO $$ BEGIN PERFORM pg_advisory_unlock_all(); END $$",
        "DO $$ BEGIN EXECUTE 'TRUNCATE ' || 'observatory.schema_migrations'; END $$",
        "CREATE FUNCTION a() RETURNS int LANGUAGE sql AS 'SELECT pg_advisory_unlock_all(); SELECT 1'; SELECT a()",
        "SET SESSION AUTHORIZATION app",
        "SET session_replication_role = replica",
        "SET default_transaction_read_only = on",
        "SET TRANSACTION READ ONLY",
        "SELECT set_config('session_authorization', 'app', false)",
        "DEALLOCATE ALL",
        "CREATE ROLE r LOGIN",
        "ALTER ROLE app SET search_path = x",
        "GRANT admin TO app_a",
        "DROP OWNED BY app",
        "REASSIGN OWNED BY app TO admin",
        "ALTER DATABASE observatory CONNECTION LIMIT 0",
        "ALTER SYSTEM SET fsync = off",
        "SET ROLE app",
        "SELECT set_config('role', 'app', false)",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION fire()",
        "DELETE FROM pg_catalog.pg_attribute WHERE attname = 'n'",
        "WITH x AS (UPDATE pg_index SET indisvalid = false RETURNING 1) SELECT 1 FROM x",
        f"EXPLAIN ANALYZE DELETE FROM {LEDGER}",
        "SELECT set_config('search_path', 'observatory', true); TRUNCATE schema_migrations",
        "DO $$ BEGIN PERFORM set_config('search_path', 'observatory', true); TRUNCATE schema_migrations; END $$",
    ],
)
def test_a_migration_that_attacks_the_program_is_refused(write_migrations: WriteMigrations, sql: str) -> None:
    assert "attacks-engine" in errors(write_migrations, f"{sql};")
    for header in ("-- phase: contract", "-- lint-ignore attacks-engine: it is fine"):
        assert "attacks-engine" in errors(write_migrations, f"{header}\n{sql};")


@pytest.mark.parametrize(
    "sql",
    [
        f"CREATE VIEW applied AS SELECT version FROM {LEDGER}",
        f"SELECT count(*) FROM {LEDGER}",
        f"CREATE TABLE x (v int); INSERT INTO x SELECT version FROM {LEDGER}",
        f"CREATE TABLE x (v int); UPDATE x SET v = 1 FROM {LEDGER} m WHERE m.version = v",
        "CREATE TEMP TABLE pg_mine (v int); INSERT INTO pg_mine VALUES (1)",
        "CREATE TABLE public.schema_migrations (version text)",
        "SELECT pg_advisory_xact_lock(1)",
        "CREATE FUNCTION job() RETURNS int LANGUAGE sql AS 'SELECT pg_try_advisory_lock(1); SELECT 1'",
        "SET lock_timeout = '2s'",
        "SET LOCAL statement_timeout = '1min'",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        "RESET ALL",
        "INSERT INTO t (id, email) VALUES (1, 'pg_advisory_unlock_all()')",
    ],
)
def test_what_the_program_survives_is_allowed(write_migrations: WriteMigrations, sql: str) -> None:
    assert errors(write_migrations, f"{sql};") == []


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("GRANT SELECT ON own_table TO PUBLIC", "GRANT TO PUBLIC gives a privilege to every login"),
        ("GRANT SELECT ON own_table TO app, app_a", "app_a is a login, or no role of this stack"),
        ("GRANT SELECT ON own_table TO reporting", "reporting is a login, or no role"),
        ("GRANT SELECT ON own_table TO CURRENT_USER", "the current user is a login"),
        ("GRANT SELECT ON own_table TO app WITH GRANT OPTION", "WITH GRANT OPTION"),
        ("GRANT SELECT ON observatory.jobs TO app", "in the schema observatory itself"),
        ("GRANT USAGE ON SCHEMA observatory TO app", "in the schema observatory itself"),
        ("GRANT SELECT ON api_keys TO readonly", "api_keys holds secrets"),
        ("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app", "Name each object"),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO app", "Name each object"),
        ("GRANT CREATE ON SCHEMA public TO app", "only migrations create objects"),
        ("GRANT ALL ON SCHEMA public TO app", "only migrations create objects"),
        ("GRANT CREATE ON DATABASE observatory TO app", "the program or the server sets these"),
        ("GRANT SET ON PARAMETER log_statement TO app", "the program or the server sets these"),
        ("GRANT SELECT ON LARGE OBJECT 1 TO app", "the program or the server sets these"),
        ("GRANT SELECT ON pg_authid TO app", "belongs to PostgreSQL"),
        ("GRANT SELECT ON pg_catalog.pg_authid TO app", "belongs to PostgreSQL"),
        ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO app", "belongs to PostgreSQL"),
        ("GRANT USAGE ON SCHEMA _timescaledb_internal TO app", "belongs to PostgreSQL or an extension"),
        ("CREATE VIEW k AS SELECT * FROM api_keys", "api_keys holds secrets"),
        ("CREATE TABLE k AS SELECT * FROM public.api_keys", "api_keys holds secrets"),
        ("CREATE SCHEMA other GRANT SELECT ON own_table TO PUBLIC", "GRANT TO PUBLIC"),
        ("DO $$ BEGIN GRANT SELECT ON own_table TO PUBLIC; END $$", "GRANT TO PUBLIC"),
    ],
)
def test_a_grant_beyond_the_group_roles_is_refused(write_migrations: WriteMigrations, sql: str, message: str) -> None:
    [found] = [each for each in findings(write_migrations, f"SELECT 1;\n{sql};") if each.rule == "grant-not-allowed"]

    assert message in found.message
    assert (found.line, found.severity) == (2, "error")


def test_the_group_roles_are_those_of_the_stack() -> None:
    assert set(GROUP_ROLES) == set(TABLE_PROFILES)


def test_grants_to_the_group_roles_are_allowed(write_migrations: WriteMigrations) -> None:
    sql = (
        "CREATE TABLE feedback (id int); GRANT INSERT, UPDATE (id) ON feedback TO app; "
        "CREATE TABLE pg_like (id int); GRANT SELECT ON pg_like TO app; "
        "CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO app, readonly, admin; "
        "CREATE FUNCTION shop.g() RETURNS int LANGUAGE sql AS 'SELECT 1'; GRANT EXECUTE ON FUNCTION shop.g TO app;"
    )

    assert errors(write_migrations, sql) == []


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("blocks-readers", "-- transaction: false\nVACUUM FULL t", "-- transaction: false\nVACUUM t"),
        ("blocks-readers", "CLUSTER t USING t_plain", "ALTER TABLE t CLUSTER ON t_plain"),
        ("removes-rows", "TRUNCATE t", "CREATE TABLE x (); TRUNCATE x"),
        ("removes-rows", "DELETE FROM t", "DELETE FROM t WHERE n = 1"),
        ("removes-rows", "DELETE FROM t WHERE n = 1 OR NOT false", "DELETE FROM t WHERE n = 1 AND true"),
        ("removes-rows", "DELETE FROM t WHERE 1 = 1", "DELETE FROM t WHERE 1 = 2"),
        (
            "removes-rows",
            "MERGE INTO t USING (SELECT 1) o ON true WHEN MATCHED THEN DELETE",
            "MERGE INTO t USING (SELECT 1 AS n) o ON t.n = o.n WHEN MATCHED THEN DELETE",
        ),
        ("removes-rows", "WITH d AS (DELETE FROM t RETURNING 1) SELECT 1", "CREATE TABLE x (); DELETE FROM x"),
        ("removes-rows", "SELECT drop_chunks('t', now())", "SELECT show_chunks('t')"),
        (
            "removes-rows",
            "DO $$ BEGIN DELETE FROM t; END $$",
            "CREATE FUNCTION h() RETURNS void LANGUAGE sql AS 'DELETE FROM t'",
        ),
        (
            "update-after-add-column",
            "ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = n WHERE x IS NULL",
            "-- transaction: false\nALTER TABLE t ADD COLUMN x int; UPDATE t SET x = n WHERE x IS NULL",
        ),
        (
            "update-after-add-column",
            "ALTER TABLE t ADD COLUMN x int; DO $$ BEGIN UPDATE t SET x = n; END $$",
            "CREATE TABLE y (n int); ALTER TABLE y ADD COLUMN x int; UPDATE y SET x = n",
        ),
        (
            "definer-without-search-path",
            "CREATE FUNCTION h() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
            "CREATE FUNCTION h() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = public AS 'SELECT 1'",
        ),
        (
            "definer-without-search-path",
            "ALTER FUNCTION f(int) SECURITY DEFINER",
            "ALTER FUNCTION f(int) SECURITY DEFINER SET search_path = public",
        ),
        ("no-effect", "-- transaction: false\nSET LOCAL work_mem = '1GB'", "SET LOCAL work_mem = '1GB'"),
        ("no-effect", "-- transaction: false\nSET LOCAL jit = off", "-- transaction: false\nSET jit = off"),
        (
            "no-effect",
            "-- transaction: false\nSELECT set_config('work_mem', '1GB', true)",
            "-- transaction: false\nDO $$ BEGIN SET LOCAL work_mem = '1GB'; END $$",
        ),
    ],
)
def test_what_blocks_or_empties_a_table_needs_a_reason(
    write_migrations: WriteMigrations, rule: str, bad: str, good: str
) -> None:
    assert rule in errors(write_migrations, f"{bad};")
    assert rule not in errors(write_migrations, f"{good};")
    assert rule not in errors(write_migrations, f"-- lint-ignore {rule}: the reason\n{bad};")


@pytest.mark.parametrize(
    ("mark", "tool"),
    [
        ("-- migrate:up", "dbmate"),
        ("-- migrate:down", "dbmate"),
        ("--migrate:up transaction:false", "dbmate"),
        ("-- +goose Up", "goose"),
        ("-- +goose Down", "goose"),
        ("-- +goose StatementBegin", "goose"),
        ("-- +migrate Down", "sql-migrate"),
        ("-- +micrate Down", "micrate"),
        ("-- rambler down", "rambler"),
        ("--liquibase formatted sql", "Liquibase"),
        ("--changeset nvoxland:1", "Liquibase"),
        ("--rollback DROP TABLE x;", "Liquibase"),
        ("-- rollback drop table x;", "Liquibase"),
        ("--//@UNDO", "MyBatis Migrations"),
        ("-- //@UNDO", "MyBatis Migrations"),
        ("-- Down Migration", "node-pg-migrate"),
        ("---- create above / drop below ----", "tern"),
        ("-- Revert flipr:appschema from pg", "sqitch"),
        ("-- Deploy flipr:appschema to pg", "sqitch"),
        ("-- atlas:txmode none", "Atlas"),
        ("-- Down", "a tool with down sections"),
    ],
)
def test_a_mark_of_another_tool_is_refused_with_the_way_to_convert(
    write_migrations: WriteMigrations, mark: str, tool: str
) -> None:
    [found] = marks(findings(write_migrations, f"CREATE TABLE x ();\n{mark}\nSELECT 1;"))

    assert (found.line, found.column, found.severity) == (2, 1, "error")
    assert f"is a mark of {tool}, which means nothing here. " in found.message


@pytest.mark.parametrize(
    "sql",
    [
        "-- Undo the wrong prices of May: set them again.",
        "-- rollback of the release needs no change here",
        "-- goes down to zero",
        "SELECT '\n-- migrate:down\n';",
        "COMMENT ON TABLE t IS $$\n-- +goose Down\n$$;",
    ],
)
def test_a_plain_comment_or_text_is_no_mark(write_migrations: WriteMigrations, sql: str) -> None:
    assert marks(findings(write_migrations, f"{sql}\nSELECT 1;")) == []


def marks(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.rule == "mark-of-another-tool"]
