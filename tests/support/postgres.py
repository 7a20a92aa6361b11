"""A real PostgreSQL with TimescaleDB for the suite.

Owns: starting, restarting and removing a throwaway server out of the stack's own root filesystem, and fresh
databases on it. Does not own: how the stack itself runs its server (that is `observatory.runtime`).
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from observatory.runtime import bubblewrap, home_owners, sandbox_user
from tests.support.ports import free_port

BINARIES = "/usr/lib/postgresql/17/bin"
START_TIMEOUT_S = 120  # on a busy machine
SMALL_DISK = "/tmp/small"  # noqa: S108 - in the sandbox: a file system that the server can fill
SMALL_DISK_BYTES = 4 * 1024 * 1024
EXTENDED = "extended"  # the template of databases with the extensions, which take four times as long to create there

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "/srv/run",
    "shared_preload_libraries": "timescaledb,pg_stat_statements",
    "timescaledb.telemetry_level": "off",
    "max_worker_processes": "48",  # pg_cron runs every job of a test in one
    # Otherwise TimescaleDB opens a session in each database within a minute, and runs a job there, which writes rows,
    # takes an advisory lock, and logs an error on the Apache edition: at any moment of a test.
    "timescaledb.max_background_workers": "0",
    "shared_buffers": "64MB",
    "log_statement": "all",
    "log_line_prefix": "%m [%p] %u@%d ",
    # The suite kills clients and restarts servers but never the machine: nothing needs to survive a power cut.
    "fsync": "off",
}


@dataclass(kw_only=True)
class PostgresServer:
    """A throwaway server: superuser `postgres` by peer on the socket, everybody else by SCRAM over TCP.

    The operating-system user that runs the suite may log in over the socket as any role. `settings` go before the
    suite's own. `binaries` is the directory of its programs in `rootfs`, `mounts` are further options of the sandbox.
    """

    rootfs: Path
    directory: Path
    port: int
    host: str = "127.0.0.1"
    settings: Mapping[str, str] = field(default_factory=dict)
    binaries: str = BINARIES
    mounts: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    _has_template: bool = False

    @property
    def socket_directory(self) -> Path:
        return self.directory / "run"

    @property
    def log_file(self) -> Path:
        return self.directory / "postgres.log"

    def conninfo(self, *, user: str = "postgres", dbname: str = "postgres") -> str:
        """Connection string over the unix socket, without a password."""
        return make_conninfo(host=str(self.socket_directory), port=self.port, user=user, dbname=dbname)

    def tcp_conninfo(self, *, user: str, password: str, dbname: str) -> str:
        """Connection string over TCP with a password, as a service connects."""
        return make_conninfo(host=self.host, port=self.port, user=user, password=password, dbname=dbname)

    def superuser(self, dbname: str = "postgres") -> psycopg.Connection:
        """An autocommit connection as superuser."""
        return psycopg.connect(self.conninfo(dbname=dbname), autocommit=True)

    @contextlib.contextmanager
    def fresh_database(self, *, owner: str = "postgres", extensions: bool = True) -> Iterator[str]:
        """Name of a new database, dropped with all its sessions at the end.

        Args:
            owner: an existing role.
            extensions: create timescaledb and pg_stat_statements in it.
        """
        name = f"test_{secrets.token_hex(6)}"
        template = self._template() if extensions else "template0"
        with self.superuser() as connection:
            create = "CREATE DATABASE {} OWNER {} TEMPLATE {}"
            connection.execute(sql.SQL(create).format(*map(sql.Identifier, (name, owner, template))))
        try:
            yield name
        finally:
            self.drop_database(name)

    def _template(self) -> str:
        """Return the database with the extensions; the first call creates it."""
        if not self._has_template:
            with self.superuser() as connection:
                connection.execute(f"CREATE DATABASE {EXTENDED} TEMPLATE template0")
                with self.superuser(EXTENDED) as inside:
                    inside.execute("SET client_min_messages = error; CREATE EXTENSION timescaledb")
                    inside.execute("CREATE EXTENSION pg_stat_statements")
                connection.execute(f"ALTER DATABASE {EXTENDED} IS_TEMPLATE true ALLOW_CONNECTIONS false")
            self._has_template = True
        return EXTENDED

    def drop_database(self, name: str) -> None:
        with self.superuser() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @property
    def postmaster_pid(self) -> int:
        return int((self.directory / "data/postmaster.pid").read_text().split(maxsplit=1)[0])

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: it did not answer in time; the message ends with its log.
        """
        settings = [
            word for name, value in (SETTINGS | dict(self.settings)).items() for word in ("-c", f"{name}={value}")
        ]
        command = [f"{self.binaries}/postgres", "-D", "/srv/data", "-p", str(self.port), *settings]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.sandboxed(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait_until_ready()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self.process is None:
            return
        # The sandbox hands no signal on to its child, but ends with it.
        os.kill(self.postmaster_pid, how)
        self.process.wait(timeout=START_TIMEOUT_S)
        self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def sandboxed(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` in the sandbox of the server, which sees its directory as /srv."""
        mounts = ["--die-with-parent", "--perms", "1777", "--size", str(SMALL_DISK_BYTES), "--tmpfs", SMALL_DISK]
        mounts += ["--bind", str(self.directory), "/srv", *self.mounts]
        return bubblewrap.command(self.rootfs, bubblewrap.entry(self.rootfs, self.directory), command, mounts=mounts)

    def _initialise(self) -> None:
        for directory in (self.socket_directory, self.directory / "data"):
            directory.mkdir(mode=0o700)
        home_owners.adopt(self.directory)
        locale = ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        initdb = [
            f"{self.binaries}/initdb",
            "-D",
            "/srv/data",
            "-U",
            "postgres",
            "--no-sync",
            "--data-checksums",
            *locale,
        ]
        done = subprocess.run(self.sandboxed(initdb), check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stdout}{done.stderr}")
        data = self.directory / "data"
        (data / "pg_hba.conf").write_text(
            "local all all peer map=suite\nhost all all 127.0.0.0/8 scram-sha-256\n", encoding="utf-8"
        )
        (data / "pg_ident.conf").write_text(f"suite {bubblewrap.USER} all\nsuite root all\n", encoding="utf-8")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), self.superuser():
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start; its log:\n{self.log_file.read_text(errors='replace')[-4000:]}")


@contextlib.contextmanager
def postgres_server(
    rootfs: Path, *, port: str | None = None, binaries: str = BINARIES, mounts: Sequence[str] = (), **settings: str
) -> Iterator[PostgresServer]:
    """A new, empty server out of a root filesystem, on any port by default; stopped and removed at the end."""
    # Not pytest's own directory: a unix socket's path may have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="observatory-postgres-"))
    server = PostgresServer(
        rootfs=rootfs,
        directory=directory,
        port=int(port) if port else free_port(),
        settings=settings,
        binaries=binaries,
        mounts=mounts,
    )
    try:
        server._initialise()
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(directory, ignore_errors=True)


def community_root() -> Path | None:
    """The root filesystem of the installation that OBSERVATORY_PG_PREFIX names; None where it names none."""
    prefix = os.environ.get("OBSERVATORY_PG_PREFIX")
    if not prefix:
        return None
    return next(above for above in Path(prefix).resolve().parents if (above / "etc/os-release").exists())


def community_server(rootfs: Path, **settings: str) -> contextlib.AbstractContextManager[PostgresServer] | None:
    """A new server of the installation that OBSERVATORY_PG_PREFIX names; None where it names none.

    The prefix is a directory with `bin/postgres`: of this machine, or of another root filesystem that lies on it.

    Args:
        rootfs: whose users the sandbox has.
        settings: of the server.
    """
    root = community_root()
    if root is None:
        return None
    binaries = f"/{Path(os.environ['OBSERVATORY_PG_PREFIX']).resolve().relative_to(root)}/bin"
    users = [word for name in ("passwd", "group") for word in ("--ro-bind", str(rootfs / "etc" / name), f"/etc/{name}")]
    users = [] if sandbox_user.needed() else users  # root's sandboxes have name tables of their own
    return postgres_server(root, binaries=binaries, mounts=users, **settings)
