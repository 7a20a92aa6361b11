"""The database's machine of an AWS stack, as a real PostgreSQL and pgBouncer on loopback.

It is given what the real machine reads at its start (certificate, key and password out of the secret store) and has the
real one's libraries. Owns: starting it. Does not own: Patroni and what else runs there, which `tests/stack`
tests, and the files that it is rendered from, which `tests/nodes` does.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

import yaml
from psycopg import sql

from components.aws.network import database_address
from observatory.files.atomic import write_file
from observatory.nodes import pgbouncer
from observatory.nodes.aws import DATABASE
from observatory.nodes.postgres import SERVER, logins_file, node_parameters
from observatory.nodes.tls import certificate_file, key_file
from observatory.nodes.unit import Host, Paths
from observatory.runtime import sandbox_user
from observatory.settings import AwsSettings
from tests.support.cloud import Cloud
from tests.support.postgres import PostgresServer, postgres_server

SECRET = "database-machine"
TAKEN_OVER = ("shared_preload_libraries", "cron.database_name", "cron.use_background_workers")


def loopback_network() -> str:
    """Return a network for a stack whose addresses are this machine's, as all of 127.0.0.0/8 are; rarely twice one."""
    return f"127.{random.randrange(16, 255)}.0.0/16"  # noqa: S311 - no secret


def boots_database(rootfs: Path, settings: AwsSettings, running: ExitStack) -> Callable[[Cloud], None]:
    """Return what boots the machine at the address that the stack gives it; it runs until `running` is closed."""

    def boot(cloud: Cloud) -> None:
        files, parameters = cloud.secret(SECRET), node_parameters(settings, DATABASE)
        started = postgres_server(
            rootfs,
            port=str(settings.ports.postgres),
            listen_addresses=database_address(settings),
            **{name: str(parameters[name]) for name in TAKEN_OVER},
        )
        server = running.enter_context(started)
        owner = sandbox_user.recorded(server.directory)
        write_file(server.directory / "server.crt", files[certificate_file(DATABASE, SERVER)], owner=owner)
        write_file(server.directory / "server.key", files[key_file(DATABASE, SERVER)], owner=owner)
        superuser = yaml.safe_load(files[logins_file(DATABASE)])["postgresql"]["authentication"]["superuser"]
        with server.superuser() as connection:
            connection.execute("ALTER SYSTEM SET ssl_cert_file = '/srv/server.crt'")
            connection.execute("ALTER SYSTEM SET ssl_key_file = '/srv/server.key'")
            connection.execute("ALTER SYSTEM SET ssl = on")
            connection.execute(sql.SQL("ALTER ROLE postgres PASSWORD {}").format(sql.Literal(superuser["password"])))
            connection.execute("SELECT pg_reload_conf()")
        running.enter_context(_pooler(server, settings, files))

    return boot


@contextmanager
def _pooler(server: PostgresServer, settings: AwsSettings, files: Mapping[str, str]) -> Iterator[None]:
    """Run the machine's pgBouncer beside the server, by its own configuration with other paths."""
    address, paths = database_address(settings), Paths(config="/srv/pooler", run="/srv/run")
    unit = pgbouncer.pgbouncer(settings, paths, Host(listen=address, address=address))
    contents = dict(unit.files) | {
        pgbouncer.users_file(paths): files[pgbouncer.users_file(DATABASE)],
        certificate_file(paths, pgbouncer.SERVER): files[certificate_file(DATABASE, pgbouncer.SERVER)],
        key_file(paths, pgbouncer.SERVER): files[key_file(DATABASE, pgbouncer.SERVER)],
    }
    for inside, text in contents.items():
        file = server.directory / PurePosixPath(inside).relative_to("/srv")
        file.parent.mkdir(parents=True, exist_ok=True)
        own = text.replace(f"host={paths.postgres_socket} ", f"host={paths.run} ")
        write_file(file, own, owner=sandbox_user.recorded(server.directory))
    with subprocess.Popen(server.sandboxed([*unit.command])) as process:
        try:
            yield
        finally:
            process.kill()
