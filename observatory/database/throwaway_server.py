"""A PostgreSQL server for a moment: empty, reachable over a socket in a private directory, gone afterwards.

Owns starting and ending it. Where its programs are, and how they run (in a sandbox, as another user), is an
`Installation`, which the caller gives.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from observatory.database.errors import UnreachableError
from observatory.database.migrations.files import Edition

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
LOG_LINES = 10

_SETTINGS = {
    "listen_addresses": "",
    "shared_preload_libraries": "timescaledb,pg_stat_statements",
    "timescaledb.telemetry_level": "off",
    "timescaledb.max_background_workers": "4",
    "max_worker_processes": "12",
    "shared_buffers": "32MB",
    # Nothing in it has to survive anything.
    "fsync": "off",
    "autovacuum": "off",
}


@dataclass(frozen=True, kw_only=True)
class Installation:
    """Where PostgreSQL's programs are and how they run.

    Attributes:
        programs: directory of `initdb` and `postgres`, as the programs see it.
        wrap: turns a command into the one that runs it with access to a directory of the host.
        inside: where the programs see that directory; None: where it is.
        adopt: gives a directory to the user that the programs run as, who may not be root.
    """

    programs: str
    wrap: Callable[[Sequence[str], Path], Sequence[str]] = lambda command, _directory: command
    inside: str | None = None
    adopt: Callable[[Path], None] = lambda _directory: None


@contextlib.contextmanager
def throwaway_server(installation: Installation, *, edition: Edition) -> Iterator[str]:
    """Run a server with an empty cluster inside the block.

    Args:
        installation: of PostgreSQL with TimescaleDB.
        edition: of TimescaleDB; an installation of the community edition can be both.

    Yields:
        The superuser's connection string, to the database `postgres`.

    Raises:
        UnreachableError: the programs cannot run, or the server does not start; the message ends with what they said.
    """
    # Not below the checkout: a unix socket's path may have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="observatory-throwaway-"))
    try:
        (directory / "run").mkdir(mode=0o700)
        for path in (directory, directory / "run"):
            installation.adopt(path)
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
        raise UnreachableError(f"{installation.programs}/initdb cannot run: {error.strerror}") from error
    if done.returncode:
        raise UnreachableError(f"initdb failed: {_last(done.stdout + done.stderr)}")


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
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(host=str(directory / "run"), user="postgres", dbname="postgres").close()
            return
        time.sleep(0.02)
    raise UnreachableError(f"The throwaway server did not start: {_last((directory / 'log').read_text())}")


def _end(process: subprocess.Popen[bytes], directory: Path) -> None:
    """End the server at once: a sandbox hands no signal on to it, but ends with it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        os.kill(int((directory / "data/postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _last(said: str) -> str:
    return " | ".join(said.splitlines()[-LOG_LINES:])
