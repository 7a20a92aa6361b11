"""Access that outlives a restore: what has changed since an earlier state is as it was before the restore."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from observatory.database import create_api_key, revoke_api_key
from observatory.database.roles.kept_access import KeptAccess, apply_access, read_access
from tests.database.conftest import SHIPPED, Deploy
from tests.database.roles.conftest import Names, as_login, bootstrap, make_login
from tests.support.postgres import PostgresServer


@pytest.fixture
def admin(postgres: PostgresServer, names: Names) -> Iterator[psycopg.Connection]:
    """A superuser's session in a database with its provisioner and a login."""
    bootstrap(postgres, names)
    make_login(postgres, names)
    with postgres.superuser(names.database) as connection:
        yield connection
        connection.execute(f"DROP OWNED BY {names.login}".encode())


def run(admin: psycopg.Connection, *statements: str) -> None:
    for statement in statements:
        admin.execute(statement.encode())


def options(access: KeptAccess) -> dict[tuple[str, str], tuple[bool, bool, bool]]:
    return {(each.role, each.member): each.options for each in access.memberships}


def test_passwords_settings_and_memberships_are_as_before(
    postgres: PostgresServer, names: Names, admin: psycopg.Connection
) -> None:
    run(admin, f"ALTER ROLE {names.login} SET search_path = a, 'b c'", f"GRANT pg_monitor TO {names.login}")
    conninfo = postgres.conninfo(dbname=names.database)
    before = read_access(conninfo)
    run(
        admin,
        f"ALTER ROLE {names.login} PASSWORD 'of an earlier state' NOLOGIN CONNECTION LIMIT 3 VALID UNTIL '2001-01-01'",
        f"ALTER ROLE {names.login} RESET ALL",
        f"REVOKE pg_monitor FROM {names.login}",
        f"GRANT pg_maintain TO {names.login}",
        f"REVOKE USAGE ON SCHEMA public FROM {names.login}",
    )

    apply_access(conninfo, before)

    after = read_access(conninfo)
    kept = {role.name: role.model_copy(update={"valid_until": None}) for role in before.roles}
    assert {role.name: role.model_copy(update={"valid_until": None}) for role in after.roles} == kept
    assert (options(after), after.privileges) == (options(before), before.privileges)
    with as_login(postgres, names) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ('a, "b c"',)


def test_a_role_that_was_dropped_since_cannot_log_in(
    postgres: PostgresServer, names: Names, admin: psycopg.Connection
) -> None:
    conninfo = postgres.conninfo(dbname=names.database)
    everything = read_access(conninfo)
    without = everything.model_copy(
        update={
            "privileges": [],
            "roles": [role for role in everything.roles if role.name != names.login],
            "memberships": [each for each in everything.memberships if names.login not in {each.role, each.member}],
        }
    )

    apply_access(conninfo, without)

    [login] = [role for role in read_access(conninfo).roles if role.name == names.login]
    assert (login.login, login.verifier) == (False, None)


def test_no_verifier_reaches_the_log(postgres: PostgresServer, names: Names, admin: psycopg.Connection) -> None:
    conninfo = postgres.conninfo(dbname=names.database)
    before = read_access(conninfo)
    [verifier] = [role.verifier for role in before.roles if role.name == names.login]
    run(admin, "SET log_statement = 'none'", f"ALTER ROLE {names.login} PASSWORD NULL")
    start = postgres.log_file.stat().st_size

    apply_access(conninfo, before)

    assert verifier is not None
    assert verifier.encode() not in postgres.log_file.read_bytes()[start:]


def test_a_revoked_key_stays_revoked_and_a_new_one_is_kept(conninfo: str, run_deploy: Deploy) -> None:
    run_deploy(migrations=SHIPPED, target=3)
    revoked, removed = (create_api_key(conninfo, name=name, scopes=["read"]) for name in ("revoked", "removed"))
    with psycopg.connect(conninfo) as connection:
        earlier = connection.execute("SELECT to_jsonb(k) FROM api_keys k").fetchall()
    revoke_api_key(conninfo, key=revoked)
    create_api_key(conninfo, name="new", scopes=["read"])
    with psycopg.connect(conninfo) as connection:
        connection.execute("INSERT INTO users (id) VALUES ('u1')")
        connection.execute("UPDATE api_keys SET user_id = 'u1' WHERE name = 'new'")
        connection.execute("DELETE FROM api_keys WHERE name = 'removed'")
    access = read_access(conninfo)
    with psycopg.connect(conninfo) as connection:  # as the earlier state was
        connection.execute("DELETE FROM users")
        connection.execute("DELETE FROM api_keys")
        for (key,) in earlier:
            insert = "INSERT INTO api_keys SELECT (jsonb_populate_record(NULL::api_keys, %s)).*"
            connection.execute(insert, [psycopg.types.json.Jsonb(key)])

    apply_access(conninfo, access)
    apply_access(conninfo, access)

    with psycopg.connect(conninfo) as connection:
        found = connection.execute("SELECT name, is_active, user_id FROM api_keys ORDER BY name").fetchall()
    assert found == [("new", True, None), ("removed", True, None), ("revoked", False, None)]
    assert removed
