"""The in-tree provider of `pulumi_postgresql` against a real server, on both engines."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from observatory.database import scram_verifier
from observatory.engines.embedded.provider import ProviderError
from observatory.engines.providers.postgresql import DEFAULTS_KEY, PostgresqlProvider
from tests.engines.providers.conftest import AccessLab, Site

pytestmark = pytest.mark.slow

STACK = "urn:pulumi:dev::lab::postgresql:index"
ROLE, GRANT = f"{STACK}/role:Role::r", f"{STACK}/grant:Grant::g"
DEFAULTS = f"{STACK}/defaultPrivileges:DefaultPrivileges::d"


@pytest.fixture
def provider(site: Site) -> PostgresqlProvider:
    made = PostgresqlProvider()
    made.configure(site.config)
    return made


def create(provider: PostgresqlProvider, urn: str, **inputs: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Check and create a resource as an engine does; return its ID, inputs and outputs."""
    checked, failures = provider.check(urn, {}, inputs)
    assert failures == []
    id_, outputs = provider.create(urn, checked, 0)
    assert not provider.diff(urn, id_, checked, outputs, checked).changes
    return id_, checked, outputs


def test_a_role_has_the_defaults_inputs_and_outputs_of_the_plugin(provider: PostgresqlProvider, site: Site) -> None:
    group = f"{site.prefix}app"
    create(provider, ROLE, name=group)
    id_, inputs, outputs = create(
        provider, ROLE, name=f"{group}_a", login=True, roles=[group], connectionLimit=7, statementTimeout=30_000
    )
    assert id_ == f"{group}_a"
    # As pulumi-postgresql 3.18.2 itself leaves it in the state, but for its bridge's `__pulumi_raw_state_delta`.
    assert inputs[DEFAULTS_KEY] == ["encryptedPassword", "inherit", "validUntil"]
    assert outputs == {
        "assumeRole": "",
        "bypassRowLevelSecurity": False,
        "connectionLimit": 7,
        "createDatabase": False,
        "createRole": False,
        "encrypted": None,
        "encryptedPassword": True,
        "id": f"{group}_a",
        "idleInTransactionSessionTimeout": 0,
        "inherit": True,
        "login": True,
        "name": f"{group}_a",
        "password": None,
        "passwordWo": None,
        "passwordWoVersion": None,
        "replication": False,
        "roles": [group],
        "searchPaths": None,
        "skipDropRole": False,
        "skipReassignOwned": False,
        "statementTimeout": 30_000,
        "superuser": False,
        "validUntil": "infinity",
    }


def test_an_existing_role_is_adopted_and_updated(provider: PostgresqlProvider, site: Site) -> None:
    name = f"{site.prefix}app"
    create(provider, ROLE, name=name, login=True, connectionLimit=3)
    _, _, outputs = create(provider, ROLE, name=name, roles=["pg_monitor"])
    assert (outputs["login"], outputs["connectionLimit"], outputs["roles"]) == (False, -1, ["pg_monitor"])


def test_a_role_of_another_owner_is_not_adopted(provider: PostgresqlProvider) -> None:
    with pytest.raises(ProviderError, match=r"Role r: permission denied"):
        create(provider, ROLE, name="postgres", login=True)


def test_a_role_changes_its_name_limits_and_memberships(provider: PostgresqlProvider, site: Site) -> None:
    id_, inputs, outputs = create(provider, ROLE, name=f"{site.prefix}x", roles=["pg_monitor"], statementTimeout=5)
    changed, _ = provider.check(ROLE, inputs, {"name": f"{site.prefix}y", "roles": ["pg_signal_backend"]})
    diff = provider.diff(ROLE, id_, inputs, outputs, changed)
    assert diff.changes
    assert diff.replaces == ()
    assert set(diff.changed) == {"name", "roles", "statementTimeout"}
    outputs = provider.update(ROLE, id_, outputs, changed, 0)
    assert (outputs["name"], outputs["roles"]) == (f"{site.prefix}y", ["pg_signal_backend"])
    assert outputs["statementTimeout"] == 0
    assert site.one(f"SELECT FROM pg_roles WHERE rolname = '{site.prefix}x'") is None


@pytest.mark.parametrize("as_verifier", [False, True], ids=["plain", "verifier"])
def test_the_server_log_contains_no_password(provider: PostgresqlProvider, site: Site, as_verifier: bool) -> None:
    name, password = f"{site.prefix}app", f"secret-of-{site.prefix}"
    given = scram_verifier(password) if as_verifier else password
    _, _, outputs = create(provider, ROLE, name=name, login=True, password=given)
    assert outputs["password"] == given
    conninfo = site.server.tcp_conninfo(user=name, password=password, dbname="postgres")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):  # the password is accepted
        psycopg.connect(conninfo)
    log = site.server.log_file.read_text(encoding="utf-8")
    assert f'CREATE ROLE "{name}"' in log
    assert f'ALTER ROLE "{name}" PASSWORD' not in log
    assert password not in log


def test_a_role_is_read_by_its_id_alone(provider: PostgresqlProvider, site: Site) -> None:
    """As by `pulumi import` and `Role.get`."""
    name = f"{site.prefix}app"
    _, inputs, outputs = create(provider, ROLE, name=name, login=True, connectionLimit=7)
    id_, found, given = provider.read(ROLE, name, {}, {})
    assert (id_, found) == (name, outputs)
    assert {key: value for key, value in given.items() if key != DEFAULTS_KEY} == {
        "name": name, "login": True, "connectionLimit": 7,
    }  # fmt: skip
    assert not provider.diff(ROLE, id_, given, found, inputs).changes
    assert provider.read(ROLE, f"{name}_missing", {}, {}) == ("", {}, {})


@pytest.mark.parametrize("urn", [GRANT, DEFAULTS])
def test_a_resource_whose_id_says_too_little_is_refused_by_name(provider: PostgresqlProvider, urn: str) -> None:
    with pytest.raises(ProviderError, match="cannot be read by its id"):
        provider.read(urn, "some_id", {}, {})


def test_a_superuser_detects_a_password_changed_outside_the_stack(site: Site) -> None:
    provider = PostgresqlProvider()
    provider.configure({"host": str(site.server.socket_directory), "port": site.server.port, "username": "postgres"})
    id_, inputs, outputs = create(
        provider, ROLE, name=f"{site.prefix}app", login=True, password=scram_verifier("a password")
    )
    with site.superuser() as admin:
        admin.execute(f"ALTER ROLE {site.prefix}app PASSWORD 'other'".encode())
    _, found, _ = provider.read(ROLE, id_, inputs, outputs)
    diff = provider.diff(ROLE, id_, inputs, found, inputs)
    assert diff.changed == ("password",)
    provider.update(ROLE, id_, found, inputs, 0)
    assert provider.read(ROLE, id_, inputs, found)[1] == outputs


def test_a_revoked_privilege_is_detected(provider: PostgresqlProvider, site: Site) -> None:
    name = f"{site.prefix}app"
    create(provider, ROLE, name=name)
    common = {"database": site.database, "role": name}
    id_, inputs, outputs = create(provider, GRANT, objectType="database", privileges=["CONNECT", "TEMPORARY"], **common)
    assert id_ == f"{name}_{site.database}_database"
    assert inputs[DEFAULTS_KEY] == []
    assert outputs == {
        "columns": None,
        "database": site.database,
        "id": id_,
        "objectType": "database",
        "objects": None,
        "privileges": ["CONNECT", "TEMPORARY"],
        "role": name,
        "schema": None,
        "withGrantOption": False,
    }
    assert provider.read(GRANT, id_, inputs, outputs) == (id_, outputs, inputs)
    with site.superuser() as admin:
        admin.execute(f"SET ROLE {site.owner}; REVOKE TEMPORARY ON DATABASE {site.database} FROM {name}".encode())
    assert provider.read(GRANT, id_, inputs, outputs)[1]["privileges"] == ["CONNECT"]
    provider.delete(GRANT, id_, outputs, 0)
    assert site.one(f"SELECT has_database_privilege('{name}', '{site.database}', 'CONNECT')") == (False,)


@pytest.mark.parametrize("objects", [None, ["t", "u"]], ids=["all", "named"])
def test_grants_on_tables(provider: PostgresqlProvider, site: Site, objects: list[str] | None) -> None:
    name = f"{site.prefix}app"
    create(provider, ROLE, name=name)
    with site.superuser() as admin:
        admin.execute(f"SET ROLE {site.owner}; CREATE TABLE observatory.t (); CREATE TABLE observatory.u ()".encode())
    named = {"objects": objects} if objects else {}
    id_, inputs, outputs = create(
        provider,
        GRANT,
        database=site.database,
        role=name,
        schema="observatory",
        objectType="table",
        privileges=["SELECT"],
        **named,
    )
    # A set in an id is in Terraform's order, by the digits of the CRC-32: 2238339752 is "t", 4067256894 is "u".
    assert id_ == "_".join([name, site.database, "observatory", "table", *(objects or [])])
    assert site.one(f"SELECT has_table_privilege('{name}', 'observatory.u', 'SELECT')") == (True,)
    changed, _ = provider.check(GRANT, inputs, inputs | {"privileges": ["INSERT"]})
    assert provider.diff(GRANT, id_, inputs, outputs, changed).replaces == ()
    provider.update(GRANT, id_, outputs, changed, 0)
    assert site.one(f"SELECT has_table_privilege('{name}', 'observatory.u', 'SELECT')") == (False,)
    other, _ = provider.check(GRANT, inputs, inputs | {"schema": "public"})
    diff = provider.diff(GRANT, id_, inputs, outputs, other)
    assert diff.replaces == ("schema",)
    assert diff.delete_before_replace


def test_default_privileges_apply_to_new_tables(provider: PostgresqlProvider, site: Site) -> None:
    name = f"{site.prefix}app"
    create(provider, ROLE, name=name)
    id_, inputs, outputs = create(
        provider,
        DEFAULTS,
        database=site.database,
        role=name,
        owner=site.owner,
        schema="public",
        objectType="table",
        privileges=["SELECT"],
    )
    assert id_ == f"{name}_{site.database}_public_{site.owner}_table"
    with site.superuser() as admin:
        admin.execute(f"SET ROLE {site.owner}; CREATE TABLE newer ()".encode())
    assert site.one(f"SELECT has_table_privilege('{name}', 'newer', 'SELECT')") == (True,)
    provider.delete(DEFAULTS, id_, outputs, 0)
    assert provider.read(DEFAULTS, id_, inputs, outputs)[0] == ""


@pytest.mark.parametrize(
    ("urn", "inputs", "problem"),
    [
        (ROLE, {"name": "r", "searchPaths": ["x"]}, "searchPaths"),
        (ROLE, {"name": "r", "passwordWo": "x"}, "passwordWo"),
        (GRANT, {"database": "d", "role": "r", "privileges": [], "objectType": "column", "schema": "s"}, "objectType"),
        (GRANT, {"database": "d", "role": "r", "privileges": [], "objectType": "table"}, "schema"),
        (GRANT, {"role": "r", "privileges": [], "objectType": "database"}, "database"),
        (DEFAULTS, {"database": "d", "role": "r", "owner": "o", "privileges": [], "objectType": "view"}, "objectType"),
    ],
)
def test_an_unsupported_input_is_refused_by_name(urn: str, inputs: dict[str, Any], problem: str) -> None:
    _, failures = PostgresqlProvider().check(urn, {}, inputs)
    assert [name for name, _ in failures] == [problem]


def test_an_unsupported_type_is_refused_by_name() -> None:
    with pytest.raises(ProviderError, match="postgresql:index/database:Database is not supported here"):
        PostgresqlProvider().check(f"{STACK}/database:Database::d", {}, {})


PROGRAM = """
import pulumi_postgresql as pg
server = pg.Provider(
    "server", host="127.0.0.1", port={port}, username="{prefix}provisioner", password="{password}", superuser=False,
    sslmode="disable", database="{prefix}db",
)
def on(*needs):
    return Options(provider=server, depends_on=list(needs))
app = pg.Role("app", name="{prefix}app", opts=on())
login = pg.Role(
    "app-a", name="{prefix}app_a", login=True, roles=[app.name], password="the password", connection_limit={limit},
    statement_timeout=30000, opts=on(),
)
usage = pg.Grant(
    "usage", role=app.name, database="{prefix}db", schema="public", object_type="schema", privileges=["USAGE"],
    opts=on(),
)
pg.DefaultPrivileges(
    "tables", role=app.name, database="{prefix}db", owner="{prefix}migrator", schema="public", object_type="table",
    privileges=["SELECT", "INSERT"], opts=on(usage),
)
pulumi.export("login", login.name)
"""
CREATED = ["create app", "create app-a", "create lab-dev", "create server", "create tables", "create usage"]


def program(site: Site, limit: int) -> str:
    return PROGRAM.format(port=site.server.port, prefix=site.prefix, password=site.password, limit=limit)


def test_the_embedded_engine_creates_updates_and_destroys(lab: AccessLab, site: Site) -> None:
    lab.program(program(site, 7))
    assert lab.embedded("preview").steps == CREATED
    up = lab.embedded("up")
    assert up.steps == CREATED, up.message
    assert up.outputs == {"login": f"{site.prefix}app_a"}
    for operation in ("up", "refresh", "preview"):
        assert lab.embedded(operation).steps == []
    text = lab.checkpoint.read_text()
    assert site.password not in text
    assert "the password" not in text
    lab.program(program(site, 8))
    assert lab.embedded("up").steps == ["update app-a"]
    assert site.one(f"SELECT rolconnlimit FROM pg_roles WHERE rolname = '{site.prefix}app_a'") == (8,)
    assert not lab.embedded("destroy").failed
    assert site.one(f"SELECT FROM pg_roles WHERE rolname LIKE '{site.prefix}app%'") is None


def test_a_failed_login_is_reported_without_the_password(lab: AccessLab, site: Site) -> None:
    lab.program(program(site, 7).replace(f'password="{site.password}"', 'password="guess-of-a-password"'))
    failed = lab.embedded("up")
    assert failed.failed
    assert "password authentication failed" in failed.message
    assert "cannot connect to database" in failed.message
    assert "guess" not in failed.message


@pytest.mark.cli
def test_both_engines_write_the_same_state_and_agree_that_nothing_changes(lab: AccessLab, site: Site) -> None:
    lab.program(program(site, 7))
    ours = lab.embedded("up")
    assert ours.steps == CREATED, ours.message
    carried = lab.cli("up")
    assert carried.steps == [], carried.message
    assert lab.cli("refresh").state == ours.state
    assert lab.cli("destroy").failed is False
    theirs = lab.cli("up")
    assert theirs.steps == CREATED, theirs.message
    assert theirs.state == ours.state
    assert lab.embedded("up").steps == []
    assert lab.embedded("refresh").steps == []
    lab.program(program(site, 8))
    assert lab.cli("up").steps == ["update app-a"]
    assert not lab.embedded("destroy").failed


def test_a_refused_statement_names_the_resource_and_the_remedy(provider: PostgresqlProvider, site: Site) -> None:
    grant = {"database": site.database, "role": "missing", "objectType": "database", "privileges": ["CONNECT"]}
    inputs, _ = provider.check(GRANT, {}, grant)
    expected = r'Grant g: role "missing" does not exist \(SQLSTATE 42704\)\. Nothing of the resource was changed'
    with pytest.raises(ProviderError, match=expected):
        provider.create(GRANT, inputs, 0)


def test_an_unreachable_server_is_named_with_the_remedy() -> None:
    unreachable = PostgresqlProvider()
    unreachable.configure({"host": "127.0.0.1", "port": "1", "username": "u", "password": "p", "database": "d"})
    expected = r'cannot connect to database "d" at 127\.0\.0\.1:1 as "u": .*Check that the server runs'
    with pytest.raises(ProviderError, match=expected):
        unreachable.create(ROLE, {"name": "r"}, 0)
