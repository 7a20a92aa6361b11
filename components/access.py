"""Access to the database: roles, logins, limits, and privileges on databases and schemas.

The same on every platform, given a connection to the server as its provisioner. Owns the resources of
`pulumi_postgresql`, and the role settings that it does not support. Does not own the database, its owner and the schema
`audit` (`observatory.database.roles.bootstrap`), nor privileges on tables (`components.schema`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

from components.database_node import backup_of, reconnect_pooler
from components.dynamic import without_provider
from components.secrets import LoginPassword
from observatory.database.roles import BOOTSTRAP_REVISION
from observatory.documents.login_limits import MONITOR_LIMITS, Limits, limits_of
from observatory.documents.logins import (
    POOLED_ROLES,
    PROVISIONER,
    AccessDocument,
    PairedRole,
    Side,
    login,
    logins_of,
)

if TYPE_CHECKING:
    import pulumi_postgresql as postgresql

    from observatory.database import ExtensionUpdate, Profile

MONITOR = "monitor"
GROUPS: dict[PairedRole, tuple[str, ...]] = {  # each with the roles that it is a member of
    "app": (),
    "readonly": (),
    # Not pg_read_all_data, which could read the verifiers of all passwords.
    "admin": ("pg_monitor", "pg_signal_backend", "pg_maintain"),
}
CONNECT = {"app": ("CONNECT", "TEMPORARY"), "readonly": ("CONNECT",), "admin": ("CONNECT",), MONITOR: ("CONNECT",)}
USAGE = tuple((role, schema) for role in GROUPS for schema in ("public", "observatory"))
TABLE_PROFILES: dict[str, Profile] = {"app": "service", "readonly": "reader", "admin": "administrator"}
STATISTICS_SCHEMA = "public"  # has pg_stat_statements, which the exporter reads


@dataclass(frozen=True, kw_only=True)
class Connection:
    """The connection to the server: TCP with TLS, verified with `ca_file`, as the provisioner."""

    host: str
    port: int
    user: str
    password: pulumi.Input[str]
    ca_file: pulumi.Input[str]


@dataclass(frozen=True, kw_only=True)
class AccessArgs:
    """The arguments of `Access`.

    Attributes:
        connection: as the provisioner.
        database: its name.
        owner: role that owns the objects of the migrations.
        logins: the active login of each pair, and the generation of each password.
        passwords: of the logins, from `draw_passwords`; machines may need them before the server exists.
        pool_size: connections of the pooler for each login.
        deleted_with: the resource whose deletion also removes the roles.
    """

    connection: Connection
    database: str
    owner: str
    logins: AccessDocument
    passwords: Mapping[str, LoginPassword]
    pool_size: int
    deleted_with: pulumi.Resource | None = None


def draw_passwords(logins: AccessDocument, opts: pulumi.ResourceOptions) -> dict[str, LoginPassword]:
    """Return the password of every login, by the login's name."""
    return {
        login(role, side): LoginPassword(login(role, side), generation=state.generation, opts=opts)
        for role, side, state in logins.logins()
    }


def is_pooled(name: str) -> bool:
    """Return whether a login connects through pgBouncer; administrators connect directly."""
    return name in logins_of(*POOLED_ROLES)


def pooled_passwords(passwords: Mapping[str, LoginPassword]) -> dict[str, pulumi.Output[str]]:
    """Return the passwords that pgBouncer needs."""
    return {name: password.value for name, password in passwords.items() if is_pooled(name)}


def login_file(name: str, password: LoginPassword) -> pulumi.Output[str]:
    """Return the login file of a storage service: user and password, each on its own line."""
    content: pulumi.Output[str] = password.value.apply(lambda value: f"{name}\n{value}\n")
    return content


class Access(pulumi.ComponentResource):
    """Roles, logins and their privileges. Output: `active`, the active side of each pair."""

    def __init__(self, name: str, args: AccessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:index:Access", name, None, opts)
        self._args = args
        self._server = _server(name, args, pulumi.ResourceOptions(parent=self))
        groups = {role: self._role(role, members) for role, members in GROUPS.items()}
        logins = [self._login(role, side, groups[role]) for role, side, _ in args.logins.logins()]
        monitor = self._role(MONITOR, ("pg_monitor",), MONITOR_LIMITS)
        self._grant([*groups.values(), *logins, monitor])
        RoleSettings("role-settings", _conninfo(args), _settings(args), self._options(*logins, monitor))
        active = {role: args.logins.pair(role).active for role in GROUPS}
        self.register_outputs({"active": active})

    def _role(self, role: str, members: tuple[str, ...], limits: Limits | None = None) -> postgresql.Role:
        """Declare a group, which cannot log in, or with limits a login with peer authentication."""
        import pulumi_postgresql as postgresql  # noqa: PLC0415 - the host of dynamic providers declares nothing

        return postgresql.Role(role, name=role, roles=list(members), **_limited(limits), opts=self._options())

    def _login(self, role: PairedRole, side: Side, group: pulumi.Resource) -> postgresql.Role:
        import pulumi_postgresql as postgresql  # noqa: PLC0415 - see `_role`

        name = login(role, side)
        limits = limits_of(role, pool_size=self._args.pool_size)
        return postgresql.Role(
            f"{name}-login",
            name=name,
            roles=[role],
            password=self._args.passwords[name].verifier,  # so the server and its log never receive the password
            **_limited(limits),
            opts=self._options(group),
        )

    def _grant(self, roles: list[postgresql.Role]) -> None:
        """Declare the grants in sequence: PostgreSQL rejects concurrent grants on one object."""
        database, before = self._args.database, list[pulumi.Resource](roles)

        def after(made: pulumi.Resource) -> None:
            before[:] = [made]

        for role, privileges in CONNECT.items():
            options = self._options(*before)
            after(_grant(f"{role}-connect", role, database, "database", privileges, opts=options))
        for role, schema in (*USAGE, (MONITOR, STATISTICS_SCHEMA)):
            options = self._options(*before)
            after(_grant(f"{role}-{schema}-usage", role, database, "schema", ("USAGE",), schema=schema, opts=options))
        for role, schema in USAGE:
            after(self._default(f"{role}-{schema}-tables", (role, schema), "table", ("SELECT",), *before))
        after(self._default("public-routines", ("public", None), "function", (), *before))

    def _default(
        self,
        name: str,
        grantee: tuple[str, str | None],
        kind: str,
        privileges: tuple[str, ...],
        *needs: pulumi.Resource,
    ) -> postgresql.DefaultPrivileges:
        """Declare the privileges of a role on future objects of the owner, in one schema or in all."""
        import pulumi_postgresql as postgresql  # noqa: PLC0415 - see `_role`

        role, schema = grantee
        return postgresql.DefaultPrivileges(
            name,
            role=role,
            database=self._args.database,
            owner=self._args.owner,
            schema=schema,
            object_type=kind,
            privileges=list(privileges),
            opts=self._options(*needs),
        )

    def _options(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(
            parent=self, provider=self._server, depends_on=list(after), deleted_with=self._args.deleted_with
        )


class DatabaseAccessProvider(ResourceProvider):
    """Creates the database, its owner and the provisioner with `observatory.database`."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create what is missing and correct what exists."""
        _prepare(props)
        return CreateResult(id_=props["database"], outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare name, password, libraries, the server's installation, its extensions, and the bootstrap's revision.

        A new name replaces it. Extensions that the server's files can update are printed, which the engine forwards.

        A password that was changed outside the stack is a difference too, because it locks the provisioner out.
        """
        replaces = ["database"] if _olds["database"] != _news["database"] else []
        changed = any(_olds.get(key) != _news.get(key) for key in ("verifier", "libraries", "revision"))
        changed = changed or _olds.get("server") != _news.get("server")  # its files may have newer extensions
        updates = _extension_updates(_news)
        for update in updates:
            sys.stderr.write(f"database: extension {update} is to be updated, after a backup\n")
        changed = changed or bool(updates)
        return DiffResult(changes=changed or bool(replaces) or not _password_matches(_news), replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Correct what exists. A database that is gone is not created: an empty one would hide the loss.

        Raises:
            DatabaseDroppedError: it was dropped or renamed.
        """
        _check_exists(_news)
        _prepare(_news)
        return UpdateResult(outs=without_provider(_news))


class DatabaseAccess(Resource, module="local", name="DatabaseAccess"):
    """The database, its owner and the provisioner. Deleting the resource keeps them: data is never dropped."""

    def __init__(
        self,
        name: str,
        *,
        admin_url: pulumi.Input[str],
        database: str,
        owner: str,
        verifier: pulumi.Input[str],
        libraries: str,
        server: pulumi.Input[str],
        backup_home: pulumi.Input[str] | None = None,
        pooler_port: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """Declare it.

        `server` is the server's installation: another one may have newer extensions. With `backup_home`, the home of
        the sandbox whose root filesystem it is, a backup is made before an extension is updated.
        """
        props = {
            "admin_url": admin_url,
            "database": database,
            "owner": owner,
            "verifier": verifier,
            "libraries": libraries,
            "revision": BOOTSTRAP_REVISION,
            "server": server,
            "backup_home": backup_home,
            "backup_rootfs": None if backup_home is None else server,
            "pooler_port": pooler_port,
        }
        super().__init__(DatabaseAccessProvider(), name, props, opts)


class RoleSettingsProvider(ResourceProvider):
    """Sets parameters of roles with `observatory.database`; deleting it changes nothing."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Set all parameters."""
        _set(props)
        return CreateResult(id_="role-settings", outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare the settings; another connection is no difference."""
        return DiffResult(changes=_olds.get("settings") != _news.get("settings"))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Set all parameters."""
        _set(_news)
        return UpdateResult(outs=without_provider(_news))


class RoleSettings(Resource, module="database", name="RoleSettings"):
    """Settings of roles that `pulumi_postgresql.Role` does not support."""

    def __init__(
        self,
        name: str,
        conninfo: pulumi.Output[str],
        settings: dict[str, dict[str, str | int]],
        opts: pulumi.ResourceOptions,
    ) -> None:
        plain = pulumi.ResourceOptions(parent=opts.parent, depends_on=opts.depends_on, deleted_with=opts.deleted_with)
        super().__init__(RoleSettingsProvider(), name, {"conninfo": conninfo, "settings": settings}, plain)


def _server(name: str, args: AccessArgs, opts: pulumi.ResourceOptions) -> postgresql.Provider:
    import pulumi_postgresql as postgresql  # noqa: PLC0415 - see `Access._role`

    connection = args.connection
    return postgresql.Provider(
        name,
        host=connection.host,
        port=connection.port,
        username=connection.user,
        password=connection.password,
        database=args.database,
        sslmode="verify-full",
        sslrootcert=connection.ca_file,
        superuser=False,
        opts=opts,
    )


def _conninfo(args: AccessArgs) -> pulumi.Output[str]:
    connection = args.connection

    def conninfo(values: list[str]) -> str:
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - psycopg only where it is used

        return make_conninfo(
            host=connection.host,
            port=connection.port,
            user=connection.user,
            password=values[0],
            dbname=args.database,
            sslmode="verify-full",
            sslrootcert=values[1],
        )

    return pulumi.Output.secret(pulumi.Output.all(connection.password, connection.ca_file).apply(conninfo))


def _settings(args: AccessArgs) -> dict[str, dict[str, str | int]]:
    """Return each login's lock timeout, and disable statement logging.

    The logins may not change objects or roles, so the log would have only texts of refused statements, which may
    contain prompts, and the temporary tables of the service.
    """
    settings: dict[str, dict[str, str | int]] = {MONITOR: {"lock_timeout": 1000 * MONITOR_LIMITS.lock_timeout_s}}
    for role, side, _ in args.logins.logins():
        limits = limits_of(role, pool_size=args.pool_size)
        settings[login(role, side)] = {"lock_timeout": 1000 * limits.lock_timeout_s}
        settings[login(role, side)]["log_statement"] = "none"
    return settings


def _limited(limits: Limits | None) -> dict[str, Any]:
    """Return the inputs of a role that may log in, with its limits."""
    if limits is None:
        return {}
    return {
        "login": True,
        "connection_limit": limits.connections,
        "statement_timeout": 1000 * limits.statement_timeout_s if limits.statement_timeout_s else None,
        "idle_in_transaction_session_timeout": 1000 * limits.idle_in_transaction_s,
    }


def _grant(
    name: str,
    role: str,
    database: str,
    kind: str,
    privileges: tuple[str, ...],
    *,
    schema: str | None = None,
    opts: pulumi.ResourceOptions,
) -> postgresql.Grant:
    import pulumi_postgresql as postgresql  # noqa: PLC0415 - see `Access._role`

    return postgresql.Grant(
        name, role=role, database=database, object_type=kind, schema=schema, privileges=list(privileges), opts=opts
    )


def _check_exists(props: dict[str, Any]) -> None:
    from observatory.database.errors import DatabaseDroppedError  # noqa: PLC0415 - psycopg only where it is used
    from observatory.database.presence import Presence, others_with_ledger, presence_of  # noqa: PLC0415

    server, name = props["admin_url"], props["database"]
    if presence_of(server, name) is Presence.DROPPED:
        others = others_with_ledger(server, name).values()
        raise DatabaseDroppedError(name, others=others)


def _prepare(props: dict[str, Any]) -> None:
    from observatory.database import ensure_database, ensure_provisioner  # noqa: PLC0415 - psycopg only where used

    changes: list[str] = []

    def report(detail: str) -> None:
        changes.append(detail)
        sys.stderr.write(f"database: {detail}\n")

    ensure_database(
        props["admin_url"], name=props["database"], owner=props["owner"], backup=backup_of(props), report=report
    )
    if changes:  # an open session keeps the old library of an extension
        reconnect_pooler(props)
    ensure_provisioner(
        props["admin_url"],
        database=props["database"],
        owner=props["owner"],
        name=PROVISIONER,
        verifier=props["verifier"],
        managed=[*GROUPS, MONITOR],
    )


def _password_matches(props: dict[str, Any]) -> bool:
    """Return whether the server has the provisioner's password; True where the server is unreachable."""
    from observatory.database import UnreachableError, has_verifier  # noqa: PLC0415

    try:
        return has_verifier(props["admin_url"], name=PROVISIONER, verifier=props["verifier"])
    except UnreachableError:
        return True


def _extension_updates(props: dict[str, Any]) -> tuple[ExtensionUpdate, ...]:
    """Return the updates of extensions that the running server can make; none where it does not answer.

    None either where its files do not fit the database: the server that this `up` starts may have others.
    """
    from observatory.database import (  # noqa: PLC0415 - psycopg only where it is used
        UnreachableError,
        UnsuitableServerError,
        pending_extension_updates,
        with_database,
    )

    try:
        return pending_extension_updates(with_database(props["admin_url"], props["database"]))
    except (UnreachableError, UnsuitableServerError):
        return ()


def _set(props: dict[str, Any]) -> None:
    from observatory.database import set_role_settings  # noqa: PLC0415 - psycopg only where it is used

    # Numbers arrive as floats.
    settings = {
        role: {name: int(value) if isinstance(value, float) else value for name, value in values.items()}
        for role, values in props["settings"].items()
    }
    set_role_settings(props["conninfo"], settings)
