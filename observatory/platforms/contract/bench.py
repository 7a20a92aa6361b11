"""The bench on which a release is checked: a database with its pooler, a cache, and nothing else of a stack.

The daemons are those of a `local` stack, in a sandbox of their own on free ports: PostgreSQL with the schema and the
service's privileges, pgBouncer with TLS, Valkey with a password. So a release finds there what it finds in a stack.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from observatory import database
from observatory.database.connection import with_database
from observatory.files.locks import exclusive
from observatory.nodes import Paths, Unit
from observatory.nodes.pgbouncer import SERVER as POOLER
from observatory.nodes.pgbouncer import pgbouncer, user_lines, users_file
from observatory.nodes.storage import cache_password_file, instance_name, password_file
from observatory.nodes.tls import authority_file, certificate_file, key_file
from observatory.nodes.valkey import password_file as valkey_password_file
from observatory.nodes.valkey import password_lines, valkey
from observatory.platforms.rehearsal import installation
from observatory.progress import Reporter, silent, task
from observatory.runtime import Probe, Program, Sandbox, find_free_ports, home_owners, sandbox_user
from observatory.security.certificates import issue, make_authority
from observatory.settings import FleetName, LocalSettings

if TYPE_CHECKING:
    import psycopg

OWNER = "owner"  # of the schema
GROUP, LOGINS = "app", ("app_a", "app_b")  # a rotation of passwords changes from one login to the other
FLEET: FleetName = "blue"
POSTGRES_PORT = 5432  # the number in the name of the server's socket


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A running bench.

    Attributes:
        sandbox: of its daemons.
        settings: with the ports.
        admin: connection string of the superuser to the service's database.
        owner: the same of the owner of the schema.
        passwords: of the service's logins.
        schema_version: of the database.
    """

    sandbox: Sandbox
    settings: LocalSettings
    admin: str = field(repr=False)
    owner: str = field(repr=False)
    passwords: dict[str, str] = field(repr=False)
    schema_version: int

    def use_login(self, login: str) -> None:
        """Write the login that the service must use from now on, as a rotation of passwords does."""
        file = password_file(Paths(), instance_name(FLEET, 1))
        self.sandbox.write_file(file, f"{login}\n{self.passwords[login]}\n")

    def start(self, unit: Unit, *, restart: bool = True) -> None:
        """Start a daemon and wait until it is ready.

        Raises:
            RuntimeFault: it ended, or is not ready in time.
        """
        for path, content in unit.files.items():
            self.sandbox.write_file(path, content)
        self.sandbox.supervisor.apply(
            Program(
                name=unit.name,
                command=unit.command,
                environment=unit.environment,
                stop_signal=unit.stop_signal,
                stop_seconds=unit.stop_seconds,
                priority=unit.priority,
                restart=restart,
                start_retries=3 if restart else 0,
            )
        )
        probe = Probe(**unit.ready.target(self.sandbox.host_path))
        self.sandbox.supervisor.wait_ready(unit.name, probe, timeout=unit.settle_seconds)

    @contextmanager
    def database_away(self) -> Iterator[None]:
        """Refuse every connection of the service to the database inside the block."""
        name = self.settings.database.name
        with database.connect(with_database(self.admin, "postgres"), purpose="contract") as connection:
            _allow_connections(connection, name, allowed=False)
            try:
                connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
                yield
            finally:
                _allow_connections(connection, name, allowed=True)

    @contextmanager
    def schema_below(self, version: int) -> Iterator[None]:
        """Make the migrations from this one on incomplete inside the block, as an interrupted migration leaves them."""
        change = "UPDATE observatory.schema_migrations SET statements_total = statements_total + %s WHERE version >= %s"
        with database.connect(self.admin, purpose="contract") as connection:
            connection.execute(change, [1, version])
            try:
                yield
            finally:
                connection.execute(change, [-1, version])

    def disable(self, login: str) -> None:
        """End the sessions of a login and let it open none."""
        from psycopg import sql  # noqa: PLC0415 - only while a release is checked

        with database.connect(self.admin, purpose="contract") as connection:
            connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(login)))
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [login])


@contextmanager
def running_bench(
    home: Path, rootfs: Path, *, migrations: Path, schema_max: int, report: Reporter = silent
) -> Iterator[Bench]:
    """Run a bench in a directory, which is removed at the end.

    What a killed check left in the directory is ended and removed first. A second check waits for the end of the first.

    Args:
        home: the directory, which does not exist between checks.
        rootfs: the root filesystem of the daemons.
        migrations: directory of the migrations.
        schema_max: highest migration to apply.
        report: gets the progress.
    """
    home.parent.mkdir(parents=True, exist_ok=True)
    sandbox = Sandbox(home, rootfs)
    with exclusive(home.with_name(f"{home.name}.lock")), ExitStack() as stack:
        _remove(sandbox)
        stack.callback(_remove, sandbox)
        with task(report, "database, pooler and cache for the check"):
            sandbox.start()
            server = stack.enter_context(_server(sandbox))
            made = _furnished(sandbox, server, migrations, schema_max)
        yield made


def _furnished(sandbox: Sandbox, server: str, migrations: Path, schema_max: int) -> Bench:
    settings = _settings()
    passwords = {login: secrets.token_urlsafe(24) for login in LOGINS}
    admin, owner, version = _prepare(server, settings.database.name, passwords, migrations, schema_max)
    made = Bench(
        sandbox=sandbox, settings=settings, admin=admin, owner=owner, passwords=passwords, schema_version=version
    )
    _start_pooler(made)
    _start_cache(made)
    made.use_login(LOGINS[0])
    return made


def _remove(sandbox: Sandbox) -> None:
    sandbox.stop()
    shutil.rmtree(sandbox.home, ignore_errors=True)


def _settings() -> LocalSettings:
    pgbouncer_port, cache, instance = find_free_ports(3)
    ports = {"postgres": POSTGRES_PORT, "pgbouncer": pgbouncer_port, "valkey": cache, FLEET: instance}
    return LocalSettings.model_validate({"ports": ports})


@contextmanager
def _server(sandbox: Sandbox) -> Iterator[str]:
    """Run PostgreSQL, whose socket the pooler finds where it is in a stack."""
    user = sandbox_user.recorded(sandbox.home)

    def adopt(directory: Path) -> None:
        if user:  # the same as that of the other daemons
            sandbox_user.record(directory, user)
        home_owners.adopt(directory)

    programs = replace(installation(sandbox.rootfs), adopt=adopt)
    with database.throwaway_server(programs, edition="apache", parent=sandbox.home) as server:
        (directory,) = sandbox.home.glob("observatory-throwaway-*")
        sandbox.host_path(Paths().postgres_socket).symlink_to(f"{sandbox.inside_path(directory)}/run")
        yield server


def _prepare(
    server: str, name: str, passwords: dict[str, str], migrations: Path, schema_max: int
) -> tuple[str, str, int]:
    """Create the database, its schema and the service's logins; return both connection strings and the version."""
    from psycopg import sql  # noqa: PLC0415 - only while a release is checked
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    database.ensure_database(server, name=name, owner=OWNER)
    admin = with_database(server, name)
    owner = make_conninfo(admin, user=OWNER)
    known = [migration.version for migration in database.read_migrations(migrations)]
    target = max((version for version in known if version <= schema_max), default=0)
    with database.connect(admin, purpose="contract") as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(GROUP)))
        for login, password in passwords.items():
            create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}")
            connection.execute(create.format(sql.Identifier(login), sql.Literal(password), sql.Identifier(GROUP)))
        grant = sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}")
        connection.execute(grant.format(sql.Identifier(name), sql.Identifier(GROUP)))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA public, observatory TO {}").format(sql.Identifier(GROUP)))
    done = database.deploy(
        owner, migrations=migrations, target=target, actor="release check", deployment_id="release-check"
    )
    database.grant_access(owner, roles={GROUP: "service"})
    return admin, owner, done.version


def _allow_connections(connection: psycopg.Connection, name: str, *, allowed: bool) -> None:
    from psycopg import sql  # noqa: PLC0415 - only while a release is checked

    statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    connection.execute(statement.format(sql.Identifier(name), sql.Literal(allowed)))


def _start_pooler(made: Bench) -> None:
    paths = Paths()
    authority = make_authority("LLM Observatory, release check")
    certificate = issue(authority, name=POOLER, hosts=("127.0.0.1", "localhost"))
    files = {
        authority_file(paths): authority.certificate,
        certificate_file(paths, POOLER): certificate.certificate,
        key_file(paths, POOLER): certificate.key,
        users_file(paths): user_lines(made.passwords),
    }
    for path, content in files.items():
        made.sandbox.write_file(path, content)
    made.start(pgbouncer(made.settings, paths))


def _start_cache(made: Bench) -> None:
    password, paths = secrets.token_urlsafe(24), Paths()
    made.sandbox.write_file(valkey_password_file(paths), password_lines(password, secrets.token_urlsafe(24)))
    made.sandbox.write_file(cache_password_file(paths, instance_name(FLEET, 1)), password)
    made.start(valkey(made.settings, paths))
