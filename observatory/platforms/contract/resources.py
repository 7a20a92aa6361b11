"""What an instance takes of the machine: addresses, connections to the database, and memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from observatory import database
from observatory.database.verification_rows import marked_rows
from observatory.delivery.environment import HostsError
from observatory.nodes import Unit
from observatory.platforms.contract.bench import Bench
from observatory.platforms.contract.requirements import ContractError, Findings
from observatory.platforms.instance_process import family, process_of, running, usage
from observatory.platforms.place import Place
from observatory.platforms.smoke import Run
from observatory.platforms.trial_checks import check_growth, send_burst

if TYPE_CHECKING:
    import psutil

OWN_CONNECTIONS = 1  # beside those of requests, for the readiness of an instance
SAMPLE_SECONDS = 0.05  # between two counts of connections
BURSTS = 3  # a pool grows while requests wait for it


def check_resources(findings: Findings, bench: Bench, unit: Unit) -> None:
    """Check the listeners of an instance, its connections under requests at once, and its memory."""
    (port,) = unit.ports.values()

    def instance() -> psutil.Process:
        return process_of(bench.sandbox.supervisor.status(unit.name).pid)

    with findings.requirement("environment", "the program listens on no other port"):
        if others := sorted(f"{host}:{other}" for host, other in _listeners(instance()) if other != port):
            raise ContractError(f"the program also listens on {', '.join(others)}: nothing guards this port")
    most = int(unit.environment["STORAGE_POOL_MAX"])
    place = Place(name="the instance", url=f"http://127.0.0.1:{port}")
    with database.connect(bench.owner, purpose="contract") as owner, marked_rows(owner) as rows:
        run = Run.with_database(rows)
        text = f"the program has at most STORAGE_POOL_MAX connections to the database ({most}), and one of its own"
        with findings.requirement("database", text):
            with _counting(instance(), bench.settings.ports.pgbouncer) as counts:
                for _ in range(BURSTS):
                    send_burst(place, run)
            if (found := max(counts)) > most + OWN_CONNECTIONS:
                raise ContractError(f"the program had {found} connections to the database during requests at once")
        text = "memory and open files do not keep growing with the number of requests"
        with findings.requirement("limits", text) as requirement:
            requirement.unchecked = check_growth(place, run, lambda: usage(instance()))


def _listeners(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses on which a process and its children listen."""
    return {(each.laddr.ip, each.laddr.port) for each in _sockets(process) if each.status == "LISTEN"}


@contextmanager
def _counting(process: psutil.Process, port: int) -> Iterator[list[int]]:
    """Count the connections of a process to a port again and again inside the block."""
    counts, end = [_connections(process, port)], threading.Event()

    def count() -> None:
        with suppress(HostsError):  # the burst finds that the instance has ended
            while not end.wait(SAMPLE_SECONDS):
                counts.append(_connections(process, port))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        yield counts
    finally:
        end.set()
        counter.join()


def _connections(process: psutil.Process, port: int) -> int:
    return sum(each.status == "ESTABLISHED" and each.raddr.port == port for each in _sockets(process))


def _sockets(process: psutil.Process) -> list[Any]:
    """Return the TCP sockets of a process and its children, as psutil has them."""
    with running():
        return [each for member in family(process) for each in member.net_connections(kind="tcp")]
