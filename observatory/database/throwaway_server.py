"""A temporary PostgreSQL server: empty, reachable over a socket in a private directory, removed afterwards.

Owns its start and its end. The caller passes an `Installation`, which locates the programs and runs them (in a
sandbox, as another user). With a `Template` the server starts with data that an earlier one has prepared.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
import psycopg
from psycopg.conninfo import make_conninfo
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from observatory.database.errors import UnreachableError
from observatory.database.migrations.files import Edition
from observatory.database.throwaway_templates import Template, Templates
from observatory.files.sockets import short_path

START_TIMEOUT_S = 120.0  # on a busy machine; one that does not start ends by itself
POLL_S = 0.02
STOP_TIMEOUT_S = 10.0
LOG_LINES = 10

_SETTINGS = {
    "listen_addresses": "",
    "shared_preload_libraries": "timescaledb,pg_stat_statements",
    "timescaledb.telemetry_level": "off",
    "timescaledb.max_background_workers": "4",
    "max_worker_processes": "12",
    "shared_buffers": "32MB",
    # Its data need not survive a crash.
    "fsync": "off",
    "autovacuum": "off",
    "max_wal_size": "128MB",
}
_INITDB = ("--no-sync", "--wal-segsize=1")  # small segments: its WAL is part of a template


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The location of PostgreSQL's programs, and how to run them.

    Attributes:
        programs: directory of `initdb` and `postgres`, in the programs' file system.
        wrap: returns the command that runs a command with access to a directory of the host.
        inside: path of that directory in the programs' file system; None: the same path.
        adopt: gives a directory to the user of the programs, which must not be root, to write to its subdirectories.
        root: where this machine has the programs' file system.
    """

    programs: str
    wrap: Callable[[Sequence[str], Path], Sequence[str]] = lambda command, _directory: command
    inside: str | None = None
    adopt: Callable[[Path], None] = lambda _directory: None
    root: Path = Path("/")

    @property
    def libraries(self) -> frozenset[str]:
        """The names of the libraries that the server can load, without `.so`; none where there is no installation."""
        directory = self.root / self.programs.lstrip("/") / "../lib"
        return frozenset(file.stem for file in directory.glob("*.so"))

    @property
    def version(self) -> str:
        """A digest of the installed files, which changes with each version of the server or an extension."""
        programs = self.root / self.programs.lstrip("/")
        files = [programs / "postgres", *(programs / "../lib").glob("*.so")]
        found = sorted((file.name, status.st_size, status.st_mtime_ns) for file in files for status in _statuses(file))
        return hashlib.sha256(repr(found).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Throwaway:
    """Starts throwaway servers of an installation.

    Attributes:
        installation: of PostgreSQL with TimescaleDB.
        templates: keeps the data of prepared servers; None: each server is prepared anew.
        dump: returns the command that runs `pg_dump` as this process' user; None: there is none.
    """

    installation: Installation
    templates: Templates | None = None
    dump: Callable[[Sequence[str]], Sequence[str]] | None = None

    def __call__(
        self, edition: Edition, *, template: Template | None = None, settings: Mapping[str, str] = MappingProxyType({})
    ) -> contextlib.AbstractContextManager[str]:
        """Run a server inside a block; see `throwaway_server`."""
        return throwaway_server(
            self.installation, edition=edition, template=template, templates=self.templates, settings=settings
        )


@contextlib.contextmanager
def throwaway_server(
    installation: Installation,
    *,
    edition: Edition,
    parent: Path | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
    template: Template | None = None,
    templates: Templates | None = None,
) -> Iterator[str]:
    """Run a server inside the block: with an empty cluster, or with what a template prepares.

    Args:
        installation: of PostgreSQL with TimescaleDB.
        edition: of TimescaleDB; an installation of the community edition can run both.
        parent: of the server's directory; None is the directory for temporary files.
        settings: of the server, besides its own.
        template: prepares the server; not called where its data is kept.
        templates: keeps the data of prepared servers.

    Yields:
        The superuser's connection string, to the database `postgres`.

    Raises:
        UnreachableError: the programs do not run, or the server does not start; the message ends with their output.
    """
    # Not below the checkout: the path of a unix socket is limited to 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="observatory-throwaway-", dir=parent))
    try:
        for name in ("run", "data"):
            (directory / name).mkdir(mode=0o700)
        installation.adopt(directory)
        server = _Server(installation, directory, edition, settings, templates)
        server.prepare(template)
        with server.running() as conninfo:
            yield conninfo
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class _Server:
    """A server in a directory; the attributes are the arguments of `throwaway_server`."""

    installation: Installation
    directory: Path
    edition: Edition
    settings: Mapping[str, str]
    templates: Templates | None

    def prepare(self, template: Template | None) -> None:
        """Make the cluster, from the template's kept data or by preparing it."""
        if template is None:
            _initialise(self.installation, self.directory)
            return
        if self.templates and self.templates.restore(template, self._tar("-xf", "-"), self.directory / "data"):
            return
        self.prepare(template.base)
        with self.running(stop=signal.SIGINT) as conninfo:  # a shutdown that leaves nothing to recover
            template.prepare(conninfo)
        if self.templates:
            self.templates.save(template, self._tar("-cf", "-", "."))

    @contextlib.contextmanager
    def running(self, *, stop: signal.Signals = signal.SIGQUIT) -> Iterator[str]:
        with _running(self.installation, self.directory, self.edition, self.settings, stop):
            yield make_conninfo(host=str(self.directory / "run"), user="postgres", dbname="postgres")

    def _tar(self, *arguments: str) -> Sequence[str]:
        inside = self.installation.inside or str(self.directory)
        return self.installation.wrap(["tar", "-C", f"{inside}/data", *arguments], self.directory)


def _statuses(file: Path) -> Iterator[os.stat_result]:
    with contextlib.suppress(OSError):
        yield file.stat()


def _initialise(installation: Installation, directory: Path) -> None:
    locale = ("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
    inside = installation.inside or str(directory)
    command = [f"{installation.programs}/initdb", "-D", f"{inside}/data", "-U", "postgres", "--auth=trust"]
    try:
        done = subprocess.run(
            installation.wrap([*command, *_INITDB, *locale], directory), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UnreachableError(
            f"{installation.programs}/initdb cannot run: {error.strerror}. Install PostgreSQL there"
        ) from error
    if done.returncode:
        raise UnreachableError(f"initdb of the throwaway server failed: {_last_lines(done.stdout + done.stderr)}")


@contextlib.contextmanager
def _running(
    installation: Installation, directory: Path, edition: Edition, own: Mapping[str, str], stop: signal.Signals
) -> Iterator[None]:
    inside = installation.inside or str(directory)
    settings = {**_SETTINGS, **own, "unix_socket_directories": f"{inside}/run"}
    if edition == "apache":
        settings["timescaledb.license"] = "apache"
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [f"{installation.programs}/postgres", "-D", f"{inside}/data", *options]
    log_file = directory / "log"
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            installation.wrap(command, directory), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            _wait_until_ready(process, directory)
            yield
        finally:
            _end(process, directory, stop)


def _wait_until_ready(process: subprocess.Popen[bytes], directory: Path) -> None:
    attempts = Retrying(
        stop=stop_after_delay(START_TIMEOUT_S),
        wait=wait_fixed(POLL_S),
        retry=retry_if_result(lambda ready: not ready and process.poll() is None),
        retry_error_callback=lambda _: False,
    )
    if not attempts(_accepts_connections, directory):
        raise UnreachableError(f"The throwaway server did not start: {_last_lines((directory / 'log').read_text())}")


def _accepts_connections(directory: Path) -> bool:
    try:
        with short_path(directory / "run") as host:  # TMPDIR may be deep
            psycopg.connect(host=host, user="postgres", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def _end(process: subprocess.Popen[bytes], directory: Path, stop: signal.Signals) -> None:
    """Shut the server down. A sandbox does not forward signals to it, but ends with it."""
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        server = psutil.Process(int((directory / "data/postmaster.pid").read_text().split()[0]))
        if server.uids().real == (directory / "data").stat().st_uid:  # the server itself wrote the file
            server.send_signal(stop)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _last_lines(output: str) -> str:
    return " | ".join(output.splitlines()[-LOG_LINES:])
