"""Start the storage service. Its settings are `STORAGE_*` environment variables."""

import argparse
import socket
import sys

import uvicorn

from .app import create_app
from .connections import BoundedProtocol
from .lifecycle import DrainingServer, Lifecycle
from .logs import configure
from .release import RELEASE
from .settings import Listen, Settings, SettingsError

EXIT_FAILED = 1
EXIT_USAGE = 2
# Longer than a balancer keeps an idle connection, so the balancer never uses a connection that is closing.
KEEP_ALIVE_S = 75
CUT_OFF_S = 2  # before connections that are open at the end of the drain are closed
BACKLOG = 2048


def main() -> int:
    """Run until SIGTERM, or run the check; returns the exit status: 0 success, 1 cannot listen, 2 invalid settings."""
    parser = argparse.ArgumentParser(prog=RELEASE.name, description=__doc__)
    parser.add_argument("--version", action="version", version=RELEASE.version)
    parser.add_argument(
        "--check", action="store_true", help="check the settings, print name, version and schema range, and exit"
    )
    arguments = parser.parse_args()
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        return _fail(str(error), EXIT_USAGE)
    if arguments.check:
        create_app(settings, lifecycle=Lifecycle())
        sys.stdout.write(f"{RELEASE.model_dump_json(exclude={'metrics'})}\n")
        return 0
    try:
        listener = _listen(settings.listen)
    except OSError as error:
        reason = str(error.strerror).partition(" (while attempting")[0]  # drops the repeated address
        return _fail(f"cannot listen on {settings.listen} (STORAGE_LISTEN): {reason}", EXIT_FAILED)
    configure(level=settings.log_level, version=RELEASE.version, fleet=settings.fleet)
    _serve(settings, listener)
    return 0


def _serve(settings: Settings, listener: socket.socket) -> None:
    lifecycle = Lifecycle()
    config = uvicorn.Config(
        create_app(settings, lifecycle=lifecycle),
        # Set here, the headers are also in the responses that uvicorn itself creates.
        headers=[("X-Observatory-Version", RELEASE.version), ("X-Observatory-Fleet", settings.fleet)],
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        http=BoundedProtocol,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=CUT_OFF_S,
        backlog=BACKLOG,
    )
    DrainingServer(config, lifecycle=lifecycle, settings=settings).run(sockets=[listener])


def _listen(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    return socket.create_server((listen.host, listen.port), family=family, backlog=BACKLOG)


def _fail(message: str, status: int) -> int:
    sys.stderr.writelines(f"{RELEASE.name}: {line}\n" for line in message.splitlines())
    return status


if __name__ == "__main__":
    sys.exit(main())
