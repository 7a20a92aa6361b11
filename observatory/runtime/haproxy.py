"""HAProxy's runtime API: changes a map, the servers in maintenance and certificates without a reload.

Owns the socket, the files of the map and of the servers, and the order of the two writes. The configuration
(`observatory.nodes.haproxy`) defines their meaning.
"""

from __future__ import annotations

import csv
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from observatory.files.sockets import short_path
from observatory.runtime.errors import RuntimeFault
from observatory.runtime.sandbox import Sandbox

ANSWER_SECONDS = 2.0  # it answers in milliseconds, or hangs
PAUSE_S = 0.1
SERVERS = 4  # of `show stat`: servers only
MAINTENANCE = 1  # of srv_admin_state: put in maintenance by `set server`
# The values that HAProxy writes for a server in maintenance that passed its last check: layer 7 passed, configured,
# enabled and paused. With zeros HAProxy 3.0 never checks the server again, or ends by a segmentation fault.
CHECKED = {"srv_check_status": "15", "srv_check_result": "3", "srv_check_state": "14"}
# The columns of a server's line in `show servers state`, and in the file that HAProxy reads at its start.
STATE_COLUMNS = (
    *("be_id", "be_name", "srv_id", "srv_name", "srv_addr", "srv_op_state", "srv_admin_state", "srv_uweight"),
    *("srv_iweight", "srv_time_since_last_change", "srv_check_status", "srv_check_result", "srv_check_health"),
    *("srv_check_state", "srv_agent_state", "bk_f_forced_id", "srv_f_forced_id", "srv_fqdn", "srv_port", "srvrecord"),
    *("srv_use_ssl", "srv_check_port", "srv_check_addr", "srv_agent_addr", "srv_agent_port"),
)


class BalancerUnreachable(RuntimeFault):
    """HAProxy's socket does not answer, or refused a command."""


@dataclass(frozen=True, kw_only=True)
class LiveMap:
    """A map of a running HAProxy; `file` and `socket` are paths inside the sandbox.

    `patience` is how many seconds to retry while HAProxy does not answer: the supervisor may be restarting it.
    """

    sandbox: Sandbox
    file: str
    socket: str
    patience: float = 0.0

    def read(self) -> dict[str, str]:
        """Return the map of the running HAProxy.

        Raises:
            BalancerUnreachable: HAProxy does not answer.
        """
        lines = _query(self.sandbox, self.socket, f"show map {self.file}", patience=self.patience).splitlines()
        return dict(line.split()[1:3] for line in lines if line.strip())  # an address, the key, the value

    def kept(self) -> dict[str, str] | None:
        """Return the map that the next start reads, or None if the file does not exist."""
        try:
            lines = self.sandbox.host_path(self.file).read_text().splitlines()
        except FileNotFoundError:
            return None
        return dict(line.split() for line in lines)

    def write(self, values: Mapping[str, str]) -> None:
        """Set the values in the running HAProxy, in this order, then in the file that a reload or restart reads.

        Raises:
            BalancerUnreachable: HAProxy does not answer; some values may be set, and the file is unchanged.
        """
        for key, value in values.items():
            _command(self.sandbox, self.socket, f"set map {self.file} {key} {value}", patience=self.patience)
        self.keep(values)

    def keep(self, values: Mapping[str, str]) -> bool:
        """Write the file alone; return whether it changed."""
        return self.sandbox.write_file(self.file, self.content(values), essential=True)

    @staticmethod
    def content(values: Mapping[str, str]) -> str:
        """Return the file's content for these values."""
        return "".join(f"{key} {value}\n" for key, value in sorted(values.items()))


@dataclass(frozen=True, kw_only=True)
class LiveServers:
    """The servers of a running HAProxy that are in maintenance: they get no new requests and no health checks.

    Servers are named `backend/server`. `file` (of `server-state-file`) and `socket` are paths inside the sandbox. The
    file holds those in maintenance only, so that a start finds all others by its own checks. `patience`: see `LiveMap`.
    """

    sandbox: Sandbox
    file: str
    socket: str
    patience: float = 0.0

    def out(self) -> frozenset[str]:
        """Return the servers in maintenance.

        Raises:
            BalancerUnreachable: HAProxy does not answer.
        """
        return frozenset(_name(server) for server in self.servers() if _is_out(server))

    def addresses(self) -> tuple[str, ...]:
        """Return every server with its address, such as `fleet_blue/blue-1 127.0.0.1:8000`.

        Raises:
            BalancerUnreachable: HAProxy does not answer.
        """
        return tuple(f"{_name(each)} {each['srv_addr']}:{each['srv_port']}" for each in self.servers())

    def kept_out(self) -> frozenset[str]:
        """Return the servers that the next start puts in maintenance."""
        try:
            text = self.sandbox.host_path(self.file).read_text()
        except FileNotFoundError:
            return frozenset()
        return frozenset(_name(server) for server in _parsed(text))

    def set_out(self, wanted: Collection[str]) -> None:
        """Put these servers in maintenance and all others back, first live and then in the file.

        Raises:
            BalancerUnreachable: HAProxy does not answer, or has no such server; some servers may be changed.
        """
        current = self.servers()
        for name in sorted(set(wanted) - {_name(server) for server in current}):
            raise BalancerUnreachable(f"HAProxy has no server {name}", remedy="Run `observatory up`.")
        for server in current:
            if (_name(server) in wanted) != _is_out(server):
                state = "maint" if _name(server) in wanted else "ready"
                _command(self.sandbox, self.socket, f"set server {_name(server)} state {state}", patience=self.patience)
        self.keep({_name(server): int(server["srv_port"]) for server in current if _name(server) in wanted})

    def keep(self, out: Mapping[str, int]) -> bool:
        """Write the file alone, with the port of each server in maintenance; return whether it changed."""
        return self.sandbox.write_file(self.file, self.content(out), essential=True)

    @staticmethod
    def content(out: Mapping[str, int]) -> str:
        """Return the file's content for these servers in maintenance."""
        lines = (" ".join(_state_line(name, port)) for name, port in sorted(out.items()))
        return "\n".join(("1", f"# {' '.join(STATE_COLUMNS)}", *lines, ""))

    def in_flight(self, server: str) -> int:
        """Return how many requests a server is processing.

        Raises:
            BalancerUnreachable: HAProxy does not answer.
        """
        backend, name = server.split("/")
        answer = _query(self.sandbox, self.socket, f"show stat {backend} {SERVERS} -1", patience=self.patience)
        lines = answer.removeprefix("# ").splitlines()
        return sum(int(row["scur"]) for row in csv.DictReader(lines) if row["svname"] == name)

    def servers(self) -> list[dict[str, str]]:
        """Return the servers that have a port: a server on a unix socket is no instance of a fleet."""
        listed = _parsed(_query(self.sandbox, self.socket, "show servers state", patience=self.patience))
        return [server for server in listed if server["srv_port"] != "0"]


@dataclass(frozen=True, kw_only=True)
class LiveCertificates:
    """The certificates of a running HAProxy. `socket` is a path inside the sandbox."""

    sandbox: Sandbox
    socket: str

    def replace(self, contents: Mapping[str, str]) -> None:
        """Use these contents of certificate files (PEM, with the key) for new connections; open ones continue.

        The files themselves, which a reload or restart reads, are not written.

        Raises:
            BalancerUnreachable: HAProxy does not answer, or refuses a certificate, which it then does not use.
        """
        for file, content in contents.items():
            self._confirmed(f"set ssl cert {file} <<\n{_without_blank_lines(content)}\n", "Transaction created")
            self._confirmed(f"commit ssl cert {file}", "Success!")

    def _confirmed(self, command: str, expected: str) -> None:
        answer = _query(self.sandbox, self.socket, command, patience=0)
        if expected not in answer:
            name = command.split("<<", maxsplit=1)[0].strip()  # what follows is a key
            raise BalancerUnreachable(f"HAProxy refused `{name}`: {answer.strip()}")


def _without_blank_lines(text: str) -> str:
    """Return a text that is one payload: a blank line would end it."""
    return "".join(f"{line}\n" for line in text.splitlines() if line.strip())


def _parsed(text: str) -> Iterator[dict[str, str]]:
    """Yield the servers of a state; the first line is the format's version, the second begins with #."""
    for line in text.splitlines()[1:]:
        if line and not line.startswith("#"):
            yield dict(zip(STATE_COLUMNS, line.split(), strict=False))


def _name(server: Mapping[str, str]) -> str:
    return f"{server['be_name']}/{server['srv_name']}"


def _is_out(server: Mapping[str, str]) -> bool:
    return bool(int(server["srv_admin_state"]) & MAINTENANCE)


def _state_line(name: str, port: int) -> list[str]:
    """Return the line of a server in maintenance; HAProxy finds it by its names, whatever the ids."""
    backend, server = name.split("/")
    known = {"be_name": backend, "srv_name": server, "srv_addr": "127.0.0.1", "srv_port": str(port)}
    known |= {"srv_admin_state": str(MAINTENANCE), "srv_uweight": "1", "srv_iweight": "1", **CHECKED}
    known |= dict.fromkeys(("srv_fqdn", "srvrecord", "srv_check_addr", "srv_agent_addr"), "-")
    return [known.get(column, "0") for column in STATE_COLUMNS]


def _command(sandbox: Sandbox, path: str, command: str, *, patience: float) -> None:
    """Send a command whose answer is empty when HAProxy accepts it."""
    if answer := _query(sandbox, path, command, patience=patience).strip():
        raise BalancerUnreachable(f"HAProxy refused `{command}`: {answer}")


def _query(sandbox: Sandbox, path: str, command: str, *, patience: float) -> str:
    """Return the answer to a command, after retries for `patience` seconds: every command may be repeated."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed  # noqa: PLC0415 - see waiting

    inside = PurePosixPath(path)
    host = sandbox.host_path(str(inside.parent))
    attempts = Retrying(
        retry=retry_if_exception_type(OSError), stop=stop_after_delay(patience), wait=wait_fixed(PAUSE_S), reraise=True
    )
    try:
        with short_path(host) as directory:
            return str(attempts(_answer, f"{directory}/{inside.name}", command))
    except OSError as error:
        raise BalancerUnreachable(
            f"HAProxy does not answer on {host / inside.name}: {error.strerror or error}",
            remedy="`observatory status` shows whether it runs.",
        ) from error


def _answer(path: str, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(path)
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
