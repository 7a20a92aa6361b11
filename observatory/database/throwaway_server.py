"""A temporary PostgreSQL server: empty, reachable over a socket in a private directory, removed afterwards.

Owns its start and its end. The caller passes an `Installation`, which locates the programs and runs them (in a
sandbox, as another user).
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg.conninfo import make_conninfo
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from observatory.database.errors import UnreachableError
from observatory.database.migrations.files import Edition
from observatory.files.sockets import short_path

START_TIMEOUT_S = 30.0
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
}


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The location of PostgreSQL's programs, and how to run them.

    Attributes:
        programs: directory of `initdb` and `postgres`, in the programs' file system.
        wrap: returns the command that runs a command with access to a directory of the host.
        inside: path of that directory in the programs' file system; None: the same path.
        adopt: gives a directory to the user of the programs, which must not be root, to write to its subdirectories.
    """

    programs: str
    wrap: Callable[[Sequence[str], Path], Sequence[str]] = lambda command, _directory: command
    inside: str | None = None
    adopt: Callable[[Path], None] = lambda _directory: None


@contextlib.contextmanager
def throwaway_server(installation: Installation, *, edition: Edition, parent: Path | None = None) -> Iterator[str]:
    """Run a server with an empty cluster inside the block.

    Args:
        installation: of PostgreSQL with TimescaleDB.
        edition: of TimescaleDB; an installation of the community edition can run both.
        parent: of the server's directory; None is the directory for temporary files.

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
        _initialise(installation, directory)
        with _running(installation, directory, edition):
            yield make_conninfo(host=str(directory / "run"), user="postgres", dbname="postgres")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _initialise(installation: Installation, directory: Path) -> None:
    locale = ("--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
    inside = installation.inside or str(directory)
    command = [f"{installation.programs}/initdb", "-D", f"{inside}/data", "-U", "postgres", "--auth=trust"]
    try:
        done = subprocess.run(
            installation.wrap([*command, "--no-sync", *locale], directory), capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UnreachableError(
            f"{installation.programs}/initdb cannot run: {error.strerror}. Install PostgreSQL there"
        ) from error
    if done.returncode:
        raise UnreachableError(f"initdb of the throwaway server failed: {_last_lines(done.stdout + done.stderr)}")


@contextlib.contextmanager
def _running(installation: Installation, directory: Path, edition: Edition) -> Iterator[None]:
    inside = installation.inside or str(directory)
    settings = {**_SETTINGS, "unix_socket_directories": f"{inside}/run"}
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
            _end(process, directory)


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


def _end(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Shut the server down at once. A sandbox does not forward signals to it, but ends with it."""
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        server = psutil.Process(int((directory / "data/postmaster.pid").read_text().split()[0]))
        if server.uids().real == (directory / "data").stat().st_uid:  # the server itself wrote the file
            server.send_signal(signal.SIGQUIT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _last_lines(output: str) -> str:
    return " | ".join(output.splitlines()[-LOG_LINES:])
