"""The console's server on a port of its own, over the real worker and a checkout whose stack was never up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from observatory.console.__main__ import configuration
from observatory.console.server import Console
from observatory.console.worker import Worker
from observatory.operations import ConsoleLinks
from tests.support.checkout import Checkout
from tests.support.ports import free_port
from tests.support.waiting import until


@dataclass(frozen=True, kw_only=True)
class Served:
    """A console that is served, and its links."""

    port: int
    links: ConsoleLinks

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        """Return a client without a session."""
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def link(self) -> str:
        """Return the path of a new link."""
        return f"/open/{self.links.create()}"

    @contextlib.contextmanager
    def session(self) -> Iterator[tuple[httpx.Client, str]]:
        """Yield a client that has opened a link, and the path of its session."""
        with self.client() as client:
            answer = client.get(self.link())
            assert answer.status_code == 200
            yield client, answer.headers["set-cookie"].partition("Path=")[2].partition(";")[0]


@contextlib.contextmanager
def served(links: Path, worker: Worker) -> Iterator[Served]:
    """Serve a console until the end of the block."""
    port = free_port()
    made = Console(links=ConsoleLinks(links), worker=worker)
    server = uvicorn.Server(configuration(made.application(port)))
    sockets = [socket.create_server(("127.0.0.1", port))]
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
    thread.start()
    try:
        until(lambda: server.started, "the console to listen")
        yield Served(port=port, links=made.links)
    finally:
        server.should_exit = True
        worker.close()
        thread.join()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose stack was never up."""
    return Checkout.copy(tmp_path_factory.mktemp("console") / "checkout", rootfs=None)


@pytest.fixture(scope="module")
def worker(fresh: Checkout) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(fresh.root))
        made = Worker(fresh.root, "local")
        yield made
        made.close()


@pytest.fixture(scope="module")
def console(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("links") / "console/local", worker) as made:
        yield made
