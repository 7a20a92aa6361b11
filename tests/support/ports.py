"""Free ports for servers of tests: no two workers of one run are given the same.

All are below the range from which the kernel takes the ports of outgoing connections, and those of servers that let it
choose: none is taken before the server that it is for listens.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections import deque

from observatory.settings import Ports

FIRST_PORT, EPHEMERAL = 20_000, 32_768  # net.ipv4.ip_local_port_range begins there
FLEET_ROOM, PORT_BLOCK = 4, 160
SINGLE_PORTS = 4  # of a worker's ports, one in so many is for a server by itself
KEPT_BLOCKS = 4  # the last ones, whose servers may not listen yet

_numbers = itertools.count(random.randrange(EPHEMERAL))  # noqa: S311 - no secret
_given: deque[int] = deque(maxlen=KEPT_BLOCKS)


def free_port() -> int:
    """Return a free port; it is given again only after all others of its kind."""
    _, lowest, highest = _ranges_of_this_worker()
    while not _is_free(port := lowest + next(_numbers) % (highest - lowest)):
        pass
    return port


def free_ports() -> dict[str, int]:
    """Return a free port for each setting, with room for a fleet's further instances; none of the blocks before."""
    names = list(Ports.model_fields)
    lowest, highest, _ = _ranges_of_this_worker()
    while True:
        first = random.randrange(lowest, highest - PORT_BLOCK)  # noqa: S311 - no secret
        if any(abs(first - other) < PORT_BLOCK for other in _given):
            continue
        if all(_is_free(first + offset) for offset in range(PORT_BLOCK)):
            _given.append(first)
            return {name: first + number * FLEET_ROOM for number, name in enumerate(names)}


def _ranges_of_this_worker() -> tuple[int, int, int]:
    """Return the first port of the blocks of this process, the first one of its single ports, and the end of both."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    width = (EPHEMERAL - FIRST_PORT) // workers
    end = FIRST_PORT + (number + 1) * width
    return end - width, end - width // SINGLE_PORTS, end


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
