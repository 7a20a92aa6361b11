"""HAProxy's runtime API: a map read and changed while requests pass, and kept for the next start.

Owns the socket's conversation and the order of the two writes. What the map means is the configuration's.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from observatory.runtime.errors import RuntimeFault
from observatory.runtime.files import short_path
from observatory.runtime.sandbox import Sandbox

ANSWER_SECONDS = 2.0  # it answers in milliseconds, or hangs


class BalancerUnreachable(RuntimeFault):
    """HAProxy's socket does not answer, or refused a command."""


@dataclass(frozen=True, kw_only=True)
class LiveMap:
    """A map of a running HAProxy; `file` and `socket` are paths inside the sandbox."""

    sandbox: Sandbox
    file: str
    socket: str

    def read(self) -> dict[str, str]:
        """Return the map that is in force.

        Raises:
            BalancerUnreachable: HAProxy does not answer.
        """
        lines = self._ask(f"show map {self.file}").splitlines()
        return dict(line.split()[1:3] for line in lines if line.strip())  # an address, the key, the value

    def kept(self) -> dict[str, str] | None:
        """Return the map that the next start reads, or None where there is no file."""
        try:
            lines = self.sandbox.host_path(self.file).read_text().splitlines()
        except FileNotFoundError:
            return None
        return dict(line.split() for line in lines)

    def write(self, values: Mapping[str, str]) -> None:
        """Put values in force, the growing ones first, and then into the file, which a reload or restart reads.

        Raises:
            BalancerUnreachable: HAProxy does not answer; nothing or a part is in force, and the file is as it was.
        """
        for key, value in values.items():
            answer = self._ask(f"set map {self.file} {key} {value}").strip()
            if answer:
                raise BalancerUnreachable(f"HAProxy refused `set map {self.file} {key} {value}`: {answer}")
        self.keep(values)

    def keep(self, values: Mapping[str, str]) -> bool:
        """Write the file alone; return False where it says so already."""
        content = "".join(f"{key} {value}\n" for key, value in sorted(values.items()))
        return self.sandbox.write_file(self.file, content)

    def _ask(self, command: str) -> str:
        inside = PurePosixPath(self.socket)
        host = self.sandbox.host_path(str(inside.parent))
        try:
            with short_path(host) as directory, socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_SECONDS)
                connection.connect(f"{directory}/{inside.name}")
                connection.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as error:
            raise BalancerUnreachable(
                f"HAProxy does not answer on {host / inside.name}: {error.strerror or error}; "
                "`observatory status` tells whether it runs"
            ) from error
