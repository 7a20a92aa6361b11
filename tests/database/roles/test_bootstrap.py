"""Bootstrap of a server: the database, its owner, the provisioner and their limits."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from psycopg import errors

from observatory.database import (
    ensure_database,
    has_verifier,
    scram_verifier,
)
from tests.database.roles.conftest import Names, as_login, bootstrap, make_login, migrate, one
from tests.support.postgres import PostgresServer


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
        admin.execute("SET ROLE auditor; CREATE TABLE audit.kept (what text); INSERT INTO audit.kept VALUES ('x')")
    for user in (names.owner, names.provisioner, names.login):
        with psycopg.connect(postgres.conninfo(user=user, dbname=names.database), autocommit=True) as connection:
            for statement in (
                "SELECT FROM audit.entries",
                "DELETE FROM audit.entries",
                "CREATE TABLE audit.other ()",
                "DROP SCHEMA audit CASCADE",
                "ALTER SCHEMA audit RENAME TO past",
                "DROP TABLE audit.kept",
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


def test_a_login_reaches_no_other_database(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    make_login(postgres, names)

    for database in ("postgres", "template1", "template0"):
        with pytest.raises(psycopg.OperationalError, match=r"permission denied|not currently accepting"):
            psycopg.connect(postgres.conninfo(user=names.login, dbname=database))


def test_a_login_cannot_fill_the_disk_or_stop_deployments(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    make_login(postgres, names)

    with as_login(postgres, names) as connection:
        for statement in (
            "SELECT lo_create(0)",
            "SELECT lo_creat(-1)",
            "SELECT lo_from_bytea(0, 'x')",
            "SELECT lo_put(1, 0, 'x')",
            "SELECT lo_open(1, 131072)",
            "SELECT lowrite(0, 'x')",
            "SELECT lo_import('/etc/passwd')",
            "SELECT pg_logical_emit_message(false, 'x', 'y')",
            "SELECT pg_advisory_lock(1868723062, 3)",
            "SELECT pg_try_advisory_xact_lock_shared(1)",
            "SELECT public.add_job('pg_sleep', '1 hour')",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    with psycopg.connect(postgres.conninfo(user=names.owner, dbname=names.database)) as owner:
        assert one(owner, "SELECT pg_try_advisory_xact_lock(1)") == (True,)


def test_passwords_and_values_stay_out_of_the_log_and_the_statistics(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    with postgres.superuser(names.database) as admin:
        admin.execute("SELECT pg_stat_statements_reset()")
        admin.execute("SET pg_stat_statements.track_utility = on; ALTER ROLE " + names.owner + " PASSWORD NULL")
    before, verifier = postgres.log_file.stat().st_size, scram_verifier("a new one")

    bootstrap(postgres, names, verifier=verifier)

    with postgres.superuser(names.database) as admin:
        recorded = "SELECT count(*) FROM pg_stat_statements WHERE query ILIKE '%password null%'"
        assert one(admin, recorded) == (0,)
        for statement in ("SELECT 'a private prompt'::int", 'SELECT * FROM "a private prompt"'):
            with pytest.raises(psycopg.Error, match="a private prompt"):
                admin.execute(statement.encode())
    with as_login(postgres, names, user=names.provisioner, password="a new one") as provisioner:
        assert one(provisioner, "SHOW log_statement") == ("none",)
    with postgres.log_file.open(errors="replace") as log:
        log.seek(before)
        written = log.read()
    assert "CREATEROLE" in written
    assert "SCRAM-SHA-256" not in written
    assert "ERROR:" not in written


def test_a_new_password_replaces_the_old_one(postgres: PostgresServer, names: Names) -> None:
    old, new = scram_verifier("old"), scram_verifier("new")
    bootstrap(postgres, names, verifier=old)
    bootstrap(postgres, names, verifier=new)

    as_login(postgres, names, user=names.provisioner, password="new").close()
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        as_login(postgres, names, user=names.provisioner, password="old")
    for verifier in (old, new):
        assert has_verifier(postgres.conninfo(), name=names.provisioner, verifier=verifier) == (verifier == new)


def test_the_owner_may_log_in_over_the_socket_and_read_other_sessions(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)

    with psycopg.connect(postgres.conninfo(user=names.owner, dbname=names.database)) as connection:
        assert one(connection, "SELECT pg_has_role('pg_read_all_stats', 'USAGE')") == (True,)
        assert one(connection, "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user") == (False,)
