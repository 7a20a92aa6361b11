"""Bootstrap of a server: the database, its owner, the provisioner, and the privileges of each role."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import psycopg
import pytest
from psycopg import errors, sql

from observatory.database import (
    StatementFailedError,
    deploy,
    ensure_database,
    ensure_provisioner,
    grant_access,
    has_verifier,
    scram_verifier,
)
from tests.database.conftest import SHIPPED
from tests.support.postgres import PostgresServer

PASSWORD = "correct horse"


@dataclass(frozen=True, kw_only=True)
class Names:
    database: str
    owner: str
    login: str
    provisioner: str


@pytest.fixture
def names(postgres: PostgresServer) -> Iterator[Names]:
    """Names that nothing has yet on the server; what the test makes under them is removed."""
    suffix = secrets.token_hex(4)
    names = Names(
        database=f"boot_{suffix}",
        owner=f"owner_{suffix}",
        login=f"login_{suffix}",
        provisioner=f"provisioner_{suffix}",
    )
    yield names
    postgres.drop_database(names.database)
    with postgres.superuser() as admin:
        if admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [names.provisioner]).fetchone() is not None:
            revoke = sql.SQL("REVOKE SET ON PARAMETER log_statement FROM {}")
            admin.execute(revoke.format(sql.Identifier(names.provisioner)))
        for role in (names.provisioner, names.login, names.owner):
            admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


VERIFIER = scram_verifier(PASSWORD)


def bootstrap(postgres: PostgresServer, names: Names, *, verifier: str = VERIFIER) -> None:
    ensure_database(postgres.conninfo(), name=names.database, owner=names.owner)
    ensure_provisioner(
        postgres.conninfo(),
        database=names.database,
        owner=names.owner,
        name=names.provisioner,
        verifier=verifier,
        managed=[names.login],
    )


def make_login(postgres: PostgresServer, names: Names) -> None:
    """As the provisioner, which is all that `components.access` has."""
    with as_login(postgres, names, user=names.provisioner) as connection:
        for statement in (
            f"CREATE ROLE {names.login} LOGIN PASSWORD '{VERIFIER}'",
            f"GRANT CONNECT, TEMPORARY ON DATABASE {names.database} TO {names.login}",
            f"GRANT USAGE ON SCHEMA public, observatory TO {names.login}",
            f"ALTER ROLE {names.login} SET log_statement = 'none'",
        ):
            connection.execute(statement.encode())


def migrate(postgres: PostgresServer, names: Names) -> None:
    conninfo = postgres.conninfo(user=names.owner, dbname=names.database)
    deploy(conninfo, migrations=SHIPPED, actor="tester", deployment_id="test")


def give_access(postgres: PostgresServer, names: Names) -> None:
    grant_access(postgres.conninfo(user=names.owner, dbname=names.database), roles={names.login: "service"})


def as_login(
    postgres: PostgresServer, names: Names, *, user: str | None = None, password: str = PASSWORD
) -> psycopg.Connection:
    conninfo = postgres.tcp_conninfo(user=user or names.login, password=password, dbname=names.database)
    return psycopg.connect(conninfo, autocommit=True)


def one(connection: psycopg.Connection, query: str) -> tuple[object, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row


def test_a_database_is_created_with_owner_locale_and_extensions(postgres: PostgresServer, names: Names) -> None:
    ensure_database(postgres.conninfo(), name=names.database, owner=names.owner)

    with postgres.superuser(names.database) as connection:
        facts = (
            "SELECT pg_encoding_to_char(encoding), datlocprovider, datlocale, datdba::regrole::text "
            "FROM pg_database WHERE datname = current_database()"
        )
        assert one(connection, facts) == ("UTF8", "b", "C.UTF-8", names.owner)
        assert one(connection, "SELECT lower('É'), current_setting('timezone')") == ("é", "UTC")
        extensions = {row[0] for row in connection.execute("SELECT extname FROM pg_extension").fetchall()}
        assert {"timescaledb", "pg_stat_statements"} <= extensions


def test_a_second_bootstrap_changes_nothing(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    migrate(postgres, names)
    verifier = f"SELECT rolpassword FROM pg_authid WHERE rolname = '{names.provisioner}'"
    with postgres.superuser() as admin:
        before = one(admin, verifier)

        bootstrap(postgres, names)

        assert one(admin, verifier) == before


def test_the_provisioner_may_revoke_its_grants(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    with as_login(postgres, names, user=names.provisioner) as provisioner:
        for statement in (
            f"CREATE ROLE {names.login} LOGIN",
            f"GRANT CONNECT ON DATABASE {names.database} TO {names.login}",
            f"REVOKE ALL PRIVILEGES ON DATABASE {names.database} FROM {names.login}",
            f"DROP ROLE {names.login}",  # PostgreSQL rejects it while the role has a privilege
        ):
            provisioner.execute(statement.encode())


def test_concurrent_bootstraps_succeed(postgres: PostgresServer, names: Names) -> None:
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(partial(bootstrap, postgres, names)) for _ in range(4)]
        for future in futures:
            future.result()

    migrate(postgres, names)


def test_a_database_whose_creation_was_interrupted_is_recreated(postgres: PostgresServer, names: Names) -> None:
    ensure_database(postgres.conninfo(), name=names.database, owner=names.owner)
    with postgres.superuser() as admin:
        # The state after an interrupted CREATE or DROP DATABASE.
        admin.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [names.database])
    with pytest.raises(psycopg.OperationalError, match="invalid database"):
        postgres.superuser(names.database)

    ensure_database(postgres.conninfo(), name=names.database, owner=names.owner)

    migrate(postgres, names)


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
        more = {"api_keys": {"UPDATE"}, **{name: {"INSERT"} for name in INGEST}}  # UPDATE of one column
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
        assert {name for name, held in privileges(connection).items() if "UPDATE" in held} == {"api_keys"}
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
        assert one(connection, "SELECT max(version) FROM observatory.schema_migrations") == (6,)
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


@pytest.mark.parametrize("role", ["owner", "provisioner"])
def test_operator_logins_have_limits(postgres: PostgresServer, names: Names, role: str) -> None:
    bootstrap(postgres, names)

    with psycopg.connect(postgres.conninfo(user=getattr(names, role), dbname=names.database)) as connection:
        settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        found = tuple(one(connection, f"SHOW {setting}")[0] for setting in settings)
        limit = one(connection, "SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user")
    assert (*found, *limit) == (("0", "30s", "5min", 30) if role == "owner" else ("30s", "10s", "30s", 10))


def test_only_the_auditor_owns_and_uses_the_audit_schema(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    make_login(postgres, names)
    with postgres.superuser(names.database) as admin:
        admin.execute(
            "SET ROLE auditor; CREATE TABLE audit.entries (what text); INSERT INTO audit.entries VALUES ('x')"
        )
    for user in (names.owner, names.provisioner, names.login):
        with psycopg.connect(postgres.conninfo(user=user, dbname=names.database), autocommit=True) as connection:
            for statement in (
                "SELECT FROM audit.entries",
                "DELETE FROM audit.entries",
                "CREATE TABLE audit.other ()",
                "DROP SCHEMA audit CASCADE",
                "ALTER SCHEMA audit RENAME TO past",
                "DROP TABLE audit.entries",
                "SET ROLE auditor",
                "GRANT auditor TO CURRENT_USER",
                "DROP OWNED BY auditor",
            ):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(statement.encode())


def test_the_provisioner_is_not_a_superuser_and_cannot_create_one(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)

    with as_login(postgres, names, user=names.provisioner) as connection:
        for statement in (
            f"ALTER ROLE {names.provisioner} SUPERUSER",
            f"CREATE ROLE {names.login} SUPERUSER",
            "ALTER ROLE postgres PASSWORD 'x'",
            "GRANT pg_execute_server_program TO CURRENT_USER",
            "COPY (SELECT 1) TO PROGRAM 'true'",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def test_the_provisioner_administers_existing_roles(postgres: PostgresServer, names: Names) -> None:
    with postgres.superuser() as admin:
        admin.execute(f"CREATE ROLE {names.login} LOGIN".encode())
    bootstrap(postgres, names)

    with as_login(postgres, names, user=names.provisioner) as connection:
        connection.execute(f"ALTER ROLE {names.login} NOLOGIN".encode())


def test_public_has_no_privileges(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    migrate(postgres, names)

    with postgres.superuser(names.database) as admin:
        query = """
            SELECT 'database', datname::text, privilege_type FROM pg_database, aclexplode(datacl)
            WHERE datname = current_database() AND grantee = 0
            UNION ALL
            SELECT 'schema', nspname, privilege_type FROM pg_namespace, aclexplode(nspacl)
            WHERE nspname IN ('public', 'observatory', 'audit') AND grantee = 0
            UNION ALL
            SELECT 'relation', relname, privilege_type FROM pg_class, aclexplode(relacl)
            WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'observatory', 'audit'))
              AND grantee = 0 AND relname NOT LIKE 'pg_stat_statements%'
        """
        assert admin.execute(query.encode()).fetchall() == []


def test_a_login_of_another_database_cannot_connect(
    postgres: PostgresServer, names: Names, fresh_database: str
) -> None:
    bootstrap(postgres, names)
    with postgres.superuser() as admin:
        admin.execute(f"CREATE ROLE {names.login}_other LOGIN".encode())
    try:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(postgres.conninfo(user=f"{names.login}_other", dbname=names.database))
    finally:
        with postgres.superuser() as admin:
            admin.execute(f"DROP ROLE {names.login}_other".encode())


def test_a_new_password_replaces_the_old_one(postgres: PostgresServer, names: Names) -> None:
    old, new = scram_verifier("old"), scram_verifier("new")
    bootstrap(postgres, names, verifier=old)
    bootstrap(postgres, names, verifier=new)

    as_login(postgres, names, user=names.provisioner, password="new").close()
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        as_login(postgres, names, user=names.provisioner, password="old")
    for verifier in (old, new):
        assert has_verifier(postgres.conninfo(), name=names.provisioner, verifier=verifier) == (verifier == new)


@pytest.mark.parametrize("password", ["", "pässword", "line\nbreak"])
def test_a_password_with_other_characters_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        scram_verifier(password)


def test_the_owner_may_log_in_over_the_socket_and_read_other_sessions(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)

    with psycopg.connect(postgres.conninfo(user=names.owner, dbname=names.database)) as connection:
        assert one(connection, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')") == (True,)
        assert one(connection, "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user") == (False,)
