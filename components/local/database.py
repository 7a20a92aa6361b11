"""TimescaleDB of the `local` stack: etcd, Patroni, the database with its logins, and pgBouncer.

Owns the server and its logins. The `Schema` resource owns the objects of the database.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult

from components.access import (
    Access,
    AccessArgs,
    Connection,
    DatabaseAccess,
    draw_passwords,
    is_pooled,
    login_file,
    pooled_passwords,
)
from components.certificates import Authority, Certificate
from components.dynamic import without_provider
from components.local.backups import RepositoryPassphrase
from components.local.machine import Daemon, Machine
from components.secrets import LoginPassword, Password
from observatory.documents.logins import PROVISIONER, AccessDocument
from observatory.nodes import Paths, etcd, pgbouncer, postgres
from observatory.nodes.pgbackrest import REPOSITORIES, cipher_file, cipher_section
from observatory.nodes.pgbouncer import user_lines, users_file
from observatory.nodes.postgres import (
    API_USER,
    LOOP_WAIT,
    api_credentials,
    api_credentials_file,
    dynamic_configuration,
    node_parameters,
    patroni,
)
from observatory.nodes.tls import authority_file, certificate_file, key_file
from observatory.runtime import RuntimeFault
from observatory.settings import LocalSettings
from observatory.waiting import wait_until

if TYPE_CHECKING:
    import httpx

OWNER = "migrator"
NOT_RESTARTED = """PostgreSQL did not restart with the changed settings: {answer}
See log/patroni.log below the stack's home, correct the setting (database.*) and run `observatory up` again."""
SHARED_PATIENCE = 30  # seconds for Patroni to report a pending restart, which shared parameters usually need
REFUSAL_PATIENCE = 20  # seconds during which Patroni may refuse, for example during a promotion
PAUSE_S = 0.2
NO_CONFIGURATION = 502  # the status of GET /config (Patroni 4.0.7, api.py)
RESTART_DEADLINE = 60  # seconds for PostgreSQL to restart


@dataclass(frozen=True, kw_only=True)
class DatabaseArgs:
    """The machine of the database, its settings, the certificate authority, and the active logins."""

    settings: LocalSettings
    machine: Machine
    authority: Authority
    logins: AccessDocument


class Database(pulumi.ComponentResource):
    """TimescaleDB on PostgreSQL 17, and pgBouncer. The schema depends on `ready`, clients on `pooled`.

    Outputs: `admin_url` (superuser) and `owner_url` (migrations), both by peer on the socket; `urls` (by login), `url`
    (the service's) and `direct_url` (the service's on the socket, before pgBouncer runs), all secret; `login` (secret;
    the service's user and password, on a line each); `ca_file`, by which clients verify the servers.
    """

    def __init__(self, name: str, args: DatabaseArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Database", name, None, opts)
        self._args, self._mine = args, pulumi.ResourceOptions(parent=self)
        settings, paths = args.settings, Paths()
        api_password = Password("patroni-api", opts=self._mine).value
        node = self._patroni(self._etcd(), api_password)
        configuration = ClusterConfiguration(
            "cluster-configuration", settings, api_password=api_password, opts=self._child(node)
        )

        socket = args.machine.home.apply(lambda home: _on_host(home, paths.postgres_socket))
        self.admin_url = socket.apply(lambda host: _conninfo(host, settings, "postgres", "postgres"))
        self.owner_url = socket.apply(lambda host: _conninfo(host, settings, OWNER, settings.database.name))
        self.ca_file = pulumi.Output.all(args.machine.home, node.id).apply(
            lambda outputs: _on_host(outputs[0], authority_file(paths))
        )
        self.passwords = draw_passwords(args.logins, self._mine)
        access = self._access(configuration)
        pooler = self._pooler(access)
        self.ready: tuple[pulumi.Resource, ...] = (access,)
        self.pooled: tuple[pulumi.Resource, ...] = (pooler,)
        active = args.logins.active_login("app")
        self.login = login_file(active, self.passwords[active])
        self.urls = {name: self._url(name, settings) for name in self.passwords}
        self.url = self.urls[active]
        self.direct_url = pulumi.Output.all(socket, self.passwords[active].value).apply(
            lambda outputs: _conninfo(outputs[0], settings, active, settings.database.name, password=outputs[1])
        )
        self.register_outputs({"admin_url": self.admin_url, "url": self.url})

    def _etcd(self) -> Daemon:
        return Daemon(
            "etcd",
            machine=self._args.machine,
            unit=etcd.etcd(self._args.settings, Paths()),
            secret_files={**self._trusted(), **self._certificate(etcd.SERVER, client=True)},
            opts=self._child(),
        )

    def _patroni(self, store: Daemon, api_password: pulumi.Output[str]) -> Daemon:
        """Declare Patroni, which starts PostgreSQL; it depends on `store`."""
        paths = Paths()
        return Daemon(
            "patroni",
            machine=self._args.machine,
            unit=patroni(self._args.settings, paths),
            secret_files={
                **self._passphrases(),
                api_credentials_file(paths): api_password.apply(api_credentials),
                **self._trusted(),
                **self._certificate(postgres.SERVER),
                **self._certificate(postgres.STORE_CLIENT, client=True),
            },
            opts=self._child(store),
        )

    def _passphrases(self) -> dict[str, pulumi.Output[str]]:
        """Declare the passphrase of each backup repository, and return pgBackRest's files with them."""
        files, machine = {}, self._args.machine
        for number in REPOSITORIES:
            name = f"backup-passphrase{'' if number == 1 else f'-{number}'}"
            cipher = RepositoryPassphrase(name, machine=machine, repository=number, opts=self._mine).value
            files[cipher_file(Paths(), number)] = cipher.apply(partial(cipher_section, number=number))
        return files

    def _access(self, configuration: ClusterConfiguration) -> Access:
        """Declare the database, its roles and logins, on the configured server."""
        args, name = self._args, self._args.settings.database.name
        provisioner = LoginPassword(PROVISIONER, generation=1, opts=self._mine)
        prepared = DatabaseAccess(
            "access",
            admin_url=self.admin_url,
            database=name,
            owner=OWNER,
            verifier=provisioner.verifier,
            libraries=node_parameters(args.settings, Paths())["shared_preload_libraries"],
            server=args.machine.rootfs,
            backup_home=args.machine.home,
            pooler_port=args.settings.ports.pgbouncer,
            opts=self._child(configuration),
        )
        connection = Connection(
            host="127.0.0.1",
            port=args.settings.ports.postgres,
            user=PROVISIONER,
            password=pulumi.Output.all(provisioner.value, prepared.id).apply(lambda outputs: str(outputs[0])),
            ca_file=self.ca_file,
        )
        roles = AccessArgs(
            connection=connection,
            database=name,
            owner=OWNER,
            logins=args.logins,
            passwords=self.passwords,
            pool_size=args.settings.database.pool_size,
            deleted_with=args.machine,
        )
        return Access("roles", roles, self._mine)

    def _pooler(self, access: Access) -> Daemon:
        users: pulumi.Output[str] = pulumi.Output.all(**pooled_passwords(self.passwords)).apply(user_lines)
        return Daemon(
            "pgbouncer",
            machine=self._args.machine,
            unit=pgbouncer.pgbouncer(self._args.settings, Paths()),
            secret_files={users_file(Paths()): users, **self._certificate(pgbouncer.SERVER)},
            opts=self._child(access),
        )

    def _url(self, name: str, settings: LocalSettings) -> pulumi.Output[str]:
        """Return a login's URL, through pgBouncer or to PostgreSQL itself."""
        port = settings.ports.pgbouncer if is_pooled(name) else settings.ports.postgres
        address = f"127.0.0.1:{port}/{settings.database.name}"
        verified = self.ca_file.apply(lambda path: f"sslmode=verify-full&sslrootcert={quote(path, safe='')}")
        return pulumi.Output.all(self.passwords[name].value, verified).apply(
            lambda outputs: f"postgresql://{name}:{outputs[0]}@{address}?{outputs[1]}"
        )

    def _trusted(self) -> dict[str, pulumi.Output[str]]:
        """Return the file of the authority with which servers and clients verify each other."""
        return {authority_file(Paths()): self._args.authority.certificate}

    def _certificate(self, server: str, *, client: bool = False) -> dict[str, pulumi.Output[str]]:
        """Return the files of a new server certificate, which with `client` is also a client certificate."""
        made = Certificate(server, authority=self._args.authority, client=client, opts=self._mine)
        return {certificate_file(Paths(), server): made.certificate, key_file(Paths(), server): made.key}

    def _child(self, *after: pulumi.Resource) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(parent=self, depends_on=list(after), deleted_with=self._args.machine)


class ClusterConfigurationProvider(ResourceProvider):
    """Sets Patroni's cluster-wide configuration over its REST API, and restarts PostgreSQL if a change needs it.

    `node` has the parameters of the node's own file, which Patroni has read; their changes may need a restart too.
    """

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Set the configuration. Patroni has it from its first start, but may lack it after a killed `up`."""
        if _configure(props):
            _restart_where_pending(props, patience=SHARED_PATIENCE)
        return CreateResult(id_="config", outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare the parameters of the cluster and of the node."""
        return DiffResult(changes=without_provider(_olds) != without_provider(_news))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Set the configuration, and restart PostgreSQL if a restart is pending."""
        _configure(_news)
        if _olds.get("configuration") != _news.get("configuration"):
            _restart_where_pending(_news, patience=SHARED_PATIENCE)
        elif _olds.get("node") != _news.get("node"):
            _restart_where_pending(_news, patience=2 * LOOP_WAIT)
        return UpdateResult(outs=without_provider(_news))


class ClusterConfiguration(Resource, module="local", name="ClusterConfiguration"):
    """Patroni's dynamic configuration; `api_password` is `API_USER`'s."""

    def __init__(
        self,
        name: str,
        settings: LocalSettings,
        *,
        api_password: pulumi.Input[str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        api = f"http://127.0.0.1:{settings.ports.patroni}"
        node = {"port": settings.ports.postgres, **node_parameters(settings, Paths())}
        props = {
            "api": api,
            "api_password": pulumi.Output.secret(api_password),
            "configuration": dynamic_configuration(settings),
            "node": node,
        }
        super().__init__(ClusterConfigurationProvider(), name, props, opts)


def _on_host(home: str, path: str) -> str:
    """Translate a path that daemons see into the host's; the home is bound at /srv."""
    return home + path.removeprefix("/srv")


def _conninfo(host: str, settings: LocalSettings, user: str, database: str, *, password: str | None = None) -> str:
    secret = f" password='{password}'" if password else ""
    quoted = host.replace("\\", "\\\\").replace("'", "\\'")
    return f"host='{quoted}' port={settings.ports.postgres} user={user} dbname={database}{secret}"


def _configure(props: dict[str, Any]) -> bool:
    """Patch the cluster's configuration if it differs; return whether it differed.

    A server that was recovered has none in etcd: Patroni responds 502, and only PUT creates it.
    """
    wanted = _whole(props["configuration"])
    with _patroni(props) as api:
        response = api.get("/config")
        if response.status_code == NO_CONFIGURATION:
            api.put("/config", json=wanted).raise_for_status()
            return True
        differs: bool = response.raise_for_status().json() != wanted
        if differs:
            api.patch("/config", json=wanted).raise_for_status()
    return differs


def _restart_where_pending(props: dict[str, Any], *, patience: float) -> None:
    """Restart PostgreSQL when Patroni reports within `patience` seconds that a restart is pending.

    Patroni may refuse the restart, for example during a promotion; the request is retried for `REFUSAL_PATIENCE` s.

    Raises:
        RuntimeFault: Patroni still refuses the restart, or PostgreSQL did not restart.
    """
    refusals: list[str] = []
    with _patroni(props) as api:

        def restarted() -> bool:
            if not api.get("/patroni").json().get("pending_restart"):
                return False
            response = api.post("/restart", json={"restart_pending": True}, timeout=RESTART_DEADLINE)
            refusals.extend([response.text] if response.is_error else [])
            return not response.is_error

        done = wait_until(lambda: restarted() or bool(refusals), patience, interval_s=PAUSE_S)
        if done and refusals and not wait_until(restarted, REFUSAL_PATIENCE, interval_s=PAUSE_S):
            raise RuntimeFault(NOT_RESTARTED.format(answer=refusals[-1]))


def _patroni(props: dict[str, Any]) -> httpx.Client:
    import httpx  # noqa: PLC0415 - only where it is used

    return httpx.Client(base_url=props["api"], auth=(API_USER, props["api_password"]), timeout=10)


def _whole(value: Any) -> Any:
    """Return a value with whole floats as integers: Pulumi passes 100.0, PostgreSQL accepts only 100."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
