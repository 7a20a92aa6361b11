"""The privileges of the service on tables and views."""

import shutil
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from observatory.database import (
    StatementFailedError,
    deploy,
    ensure_database,
    grant_access,
    verify,
)
from observatory.database.migration_grants import read_grants
from tests.database.conftest import SHIPPED
from tests.database.roles.conftest import Names, as_login, bootstrap, give_access, make_login, migrate, one
from tests.support.postgres import PostgresServer

INGEST = {"llm_traces", "llm_metrics", "llm_logs"}


def privileges(connection: psycopg.Connection) -> dict[str, set[str]]:
    """What the session's role may do with each relation of the two schemas, those of extensions left out."""
    query = """
        SELECT CASE nspname WHEN 'public' THEN relname ELSE nspname || '.' || relname END, (
            SELECT array_agg(kind) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS kind
            WHERE has_table_privilege(c.oid, kind)
               OR (kind IN ('INSERT', 'UPDATE') AND has_any_column_privilege(c.oid, kind))
        )
        FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
        WHERE nspname IN ('public', 'observatory') AND relkind IN ('r', 'v', 'm', 'p')
          AND relname NOT LIKE 'pg_stat_statements%'
    """
    return {name: set(held or ()) for name, held in connection.execute(query.encode()).fetchall()}


def test_the_service_may_insert_telemetry_and_read_all(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    migrate(postgres, names)
    make_login(postgres, names)

    for _ in range(2):
        give_access(postgres, names)
        with as_login(postgres, names) as connection:
            held = privileges(connection)

        assert {"users", "model_pricing", "projects", "llm_metrics_1min", "cost_analysis_hourly"} <= set(held)
        more = {name: {"INSERT"} for name in INGEST} | {"llm_traces": {"INSERT", "UPDATE"}}
        more |= {"api_keys": {"UPDATE"}}  # of one column
        assert held == {name: {"SELECT"} | more.get(name, set()) for name in held}


def test_excess_privileges_are_revoked(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    make_login(postgres, names)
    with postgres.superuser(names.database) as admin:
        # The grants of earlier versions: every table of every migration.
        admin.execute(
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {names.owner} IN SCHEMA public"
            f" GRANT SELECT, INSERT, UPDATE ON TABLES TO {names.login}".encode()
        )
    migrate(postgres, names)

    give_access(postgres, names)
    with as_login(postgres, names) as connection:
        assert {name for name, held in privileges(connection).items() if "INSERT" in held} == INGEST
        assert {name for name, held in privileges(connection).items() if "UPDATE" in held} == {"api_keys", "llm_traces"}
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("UPDATE api_keys SET is_active = true")


def test_granting_to_a_missing_role_is_refused(postgres: PostgresServer, names: Names) -> None:
    ensure_database(postgres.conninfo(), name=names.database, owner=names.owner)

    with pytest.raises(StatementFailedError, match=f'privileges of "{names.login}": role ".*" does not exist'):
        give_access(postgres, names)


def test_the_service_may_not_change_any_object(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    migrate(postgres, names)
    make_login(postgres, names)
    give_access(postgres, names)

    with as_login(postgres, names) as connection:
        connection.execute("INSERT INTO llm_logs (ts, log_level, message) VALUES (now(), 'INFO', 'x')")
        assert one(connection, "SELECT count(*) FROM llm_logs") == (1,)
        assert one(connection, "SELECT max(version) FROM observatory.schema_migrations") == (8,)
        connection.execute("CREATE TEMPORARY TABLE batch (LIKE llm_traces)")
        used = "UPDATE api_keys SET last_used_at = now() WHERE id IN (SELECT id FROM api_keys FOR NO KEY UPDATE)"
        connection.execute(used.encode())
        for statement in (
            "CREATE TABLE t ()",
            "CREATE SCHEMA s",
            "DROP TABLE llm_logs",
            "ALTER TABLE llm_logs ADD x int",
            "TRUNCATE llm_logs",
            "DELETE FROM llm_logs",
            "INSERT INTO api_keys (key_hash, key_prefix, name) VALUES (repeat('0', 64), 'obs_', 'n')",
            "UPDATE api_keys SET is_active = true",
            "INSERT INTO users (id) VALUES ('u')",
            "UPDATE model_pricing SET prompt_cost_per_1k = 0",
            "DELETE FROM llm_metrics_1min",
            "INSERT INTO observatory.llm_metrics_1day (bucket) VALUES (now())",
            "CALL observatory.refresh_aggregate('llm_metrics_1min')",
            "CALL observatory.drop_old_chunks('llm_logs', INTERVAL '1 day')",
            "INSERT INTO observatory.schema_migrations (version) VALUES (4)",
            "CREATE INDEX ON llm_logs (message)",
            f"SET ROLE {names.owner}",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_grants_of_migrations_stay_and_are_expected(postgres: PostgresServer, names: Names, tmp_path: Path) -> None:
    """Also on columns, in a DO block, of a renamed table and in own schemas; others are revoked or reported."""
    bootstrap(postgres, names)
    make_login(postgres, names)
    for file in sorted(SHIPPED.glob("*.sql"))[:3]:
        shutil.copy(file, tmp_path)
    (tmp_path / "500_own.sql").write_text(f"""
        CREATE TABLE feedback (id int, text text);
        GRANT INSERT, UPDATE, DELETE ON feedback TO {names.login};
        REVOKE DELETE ON feedback FROM {names.login};
        ALTER TABLE feedback RENAME TO llm_feedback;
        CREATE TABLE scores (id int, text text);
        GRANT UPDATE (text) ON scores TO {names.login};
        CREATE SCHEMA own;
        CREATE TABLE own.notes (id int);
        CREATE TABLE own.secrets (id int);
        GRANT USAGE ON SCHEMA own TO {names.login};
        DO $$ BEGIN GRANT SELECT, INSERT ON own.notes TO {names.login}; END $$;
    """)
    owner = postgres.conninfo(user=names.owner, dbname=names.database)
    service = postgres.conninfo(user=names.login, dbname=names.database)
    # The linter allows the group roles only, whose names the tests of one server share.
    deploy(owner, migrations=tmp_path, actor="tester", deployment_id="test", linted=False)
    with psycopg.connect(owner) as connection:
        connection.execute(f"GRANT DELETE, UPDATE ON scores TO {names.login}".encode())
        grants = read_grants(connection, [names.login])

    grant_access(owner, roles={names.login: "service"}, grants=grants)
    with as_login(postgres, names) as connection:
        held = privileges(connection)
    assert held["llm_feedback"] == {"SELECT", "INSERT", "UPDATE"}
    assert held["scores"] == {"SELECT", "UPDATE"}  # of one column

    def problems() -> list[str]:
        found = verify(owner, migrations=tmp_path, roles={names.login: "service"}, service_conninfo=service)
        return [each.detail for each in found.problems if each.name != "objects"]

    assert problems() == []
    with psycopg.connect(owner) as connection:
        connection.execute(f"GRANT SELECT ON own.secrets TO {names.login}".encode())
        connection.execute(f"REVOKE INSERT ON own.notes FROM {names.login}".encode())
        connection.execute(f"REVOKE UPDATE (text) ON scores FROM {names.login}".encode())
    [detail] = problems()
    assert detail.split("; ") == [
        f"{names.login} on own.notes: SELECT, expected INSERT, SELECT",
        f"{names.login} on own.secrets: SELECT, expected nothing",
        f"{names.login} may not UPDATE public.scores.text",
    ]
