"""The process of a stack's console, `python -m observatory.console ROOT STACK HOME ROOTFS`; `up` starts it."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from observatory.console.connections import CONNECTIONS, BoundedProtocol
from observatory.console.server import Console
from observatory.console.worker import Worker
from observatory.engines.stack_settings import load_settings
from observatory.operations import ConsoleLinks
from observatory.runtime import Sandbox
from observatory.scheduling.host_process import beat, identity, wanted_file
from observatory.scheduling.process_log import run_alone
from observatory.scheduling.scheduler_process import CONSOLE
from observatory.workspace import Workspace, console_links

LOG = logging.getLogger("observatory.console")
BEAT_SECONDS = 10.0
HEARTBEAT = "observatory_console_heartbeat_timestamp_seconds"


def serve(sandbox: Sandbox, root: Path, stack: str) -> None:
    """Serve the console of a stack until SIGTERM or SIGINT, or until the stack was stopped or its home removed."""
    workspace = Workspace(root=root, stack=stack)
    port = load_settings(workspace).ports.console
    links, worker = ConsoleLinks(console_links(workspace)), Worker(root, stack)
    links.remove()
    application = Console(links=links, worker=worker).application(port)
    server = uvicorn.Server(configuration(application))
    with socket.create_server(("127.0.0.1", port), backlog=CONNECTIONS) as listener:
        LOG.info("console of %s at http://127.0.0.1:%s/", stack, port)
        asyncio.run(_serve(server, listener, sandbox, worker))
    links.remove()
    LOG.info("stopped")


def configuration(application: ASGIApp) -> uvicorn.Config:
    """Return the configuration of the server.

    It logs faults of the application only: every user of the machine can send invalid requests, and a line for each
    would fill the disk of the stack.
    """
    return uvicorn.Config(
        application,
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=2 * CONNECTIONS,  # reached only if the half of them is answered at once
        timeout_graceful_shutdown=2,
    )


async def _serve(server: uvicorn.Server, listener: socket.socket, sandbox: Sandbox, worker: Worker) -> None:
    upkeep = asyncio.create_task(_keep(server, sandbox, worker))
    await server.serve(sockets=[listener])
    worker.close()  # a page that is being read would keep this process for its time
    upkeep.cancel()


async def _keep(server: uvicorn.Server, sandbox: Sandbox, worker: Worker) -> None:
    """Write the heartbeat, end an idle worker, and stop the server when the stack was stopped."""
    home = identity(sandbox.home)
    while identity(sandbox.home) == home and wanted_file(sandbox).exists():
        try:
            beat(sandbox, CONSOLE, _metrics())
        except Exception:  # for example on a full disk
            LOG.exception("the console cannot write its heartbeat and continues")
        worker.end_if_idle()
        await asyncio.sleep(BEAT_SECONDS)
    server.should_exit = True


def _metrics() -> str:
    """Return Prometheus' text format; it differs each time, so that the heartbeat is written."""
    what = f"# HELP {HEARTBEAT} Time of the console's last heartbeat.\n# TYPE {HEARTBEAT} gauge\n"
    return f"{what}{HEARTBEAT} {time.time():.3f}\n"


if __name__ == "__main__":
    run_alone(CONSOLE, LOG, sys.argv[1:], serve)
