"""Starts HAProxy with the state of its servers: those that are down get no request before their first check.

    balancer_start.py --socket S --maintenance FILE --state FILE --launcher FILE -- -W -f haproxy.cfg …

HAProxy takes every server as up when it starts or reloads, and needs a second or more to find one that stands still.
This program writes the file that HAProxy reads its servers' states from (`server-state-file`): the servers in
maintenance, copied from `--maintenance`, and those that are down. At a reload the running HAProxy names them; at a
start, each instance's `/health/ready` is read. Then it becomes HAProxy.

A reload is the same process, which executes its own `argv[0]` again with further options. That is `--launcher`, a
script which this program writes and which runs it again. HAProxy does so once more after it has read the file, to wait
for its workers.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

HAPROXY = "/usr/sbin/haproxy"
WAITS = "HAPROXY_MWORKER_WAIT_ONLY"  # set by HAProxy for the process that only waits for the workers
ANSWER_SECONDS = 1.0  # of a check in haproxy.cfg.j2, too
READY_PATH = "/health/ready"
# The columns of `show servers state`; HAProxy finds a server by its names.
COLUMNS = (
    *("be_id", "be_name", "srv_id", "srv_name", "srv_addr", "srv_op_state", "srv_admin_state", "srv_uweight"),
    *("srv_iweight", "srv_time_since_last_change", "srv_check_status", "srv_check_result", "srv_check_health"),
    *("srv_check_state", "srv_agent_state", "bk_f_forced_id", "srv_f_forced_id", "srv_fqdn", "srv_port", "srvrecord"),
    *("srv_use_ssl", "srv_check_port", "srv_check_addr", "srv_agent_addr", "srv_agent_port"),
)
# What HAProxy writes for a server that failed its last check: stopped, check failed, configured and enabled.
DOWN = {"srv_op_state": "0", "srv_check_status": "8", "srv_check_result": "2", "srv_check_state": "6"}
_SECTION = re.compile(r"backend (fleet_\w+)$|\S", re.MULTILINE)
_SERVER = re.compile(r" +server (\S+) 127\.0\.0\.1:(\d+)$", re.MULTILINE)

Server = tuple[str, str, int]
"""Backend, name and port."""


def servers(configuration: str) -> list[Server]:
    """Return the instances of the fleets in HAProxy's configuration."""
    found, backend = [], ""
    for line in configuration.splitlines():
        if section := _SECTION.match(line):
            backend = section[1] or ""
        elif backend and (server := _SERVER.match(line)):
            found.append((backend, server[1], int(server[2])))
    return found


def live_states(path: str) -> dict[Server, bool]:
    """Return the servers of the running HAProxy, if one runs, and whether each is up; without those in maintenance."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(path)
            connection.sendall(b"show servers state\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    except OSError:
        return {}
    listed = (dict(zip(COLUMNS, line.split(), strict=False)) for line in answer.splitlines())
    return {
        (each["be_name"], each["srv_name"], int(each["srv_port"])): each["srv_op_state"] != "0"
        for each in listed
        if each.get("srv_admin_state") == "0"
    }


def is_ready(port: int) -> bool:
    """Return whether the instance on a port is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", READY_PATH)
        return connection.getresponse().status < HTTPStatus.BAD_REQUEST
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def down(declared: Sequence[Server], live: Mapping[Server, bool]) -> list[Server]:
    """Return the servers that are down; those that the running HAProxy does not have are checked."""
    new = [server for server in declared if server not in live]
    if not new:
        ready: dict[Server, bool] = {}
    else:
        with ThreadPoolExecutor(max_workers=len(new)) as pool:
            ready = dict(zip(new, pool.map(is_ready, (port for _, _, port in new)), strict=True))
    states = {**live, **ready}
    return [server for server in declared if not states[server]]


def state_line(server: Server) -> str:
    """Return the line of a server that is down."""
    backend, name, port = server
    known = {"be_name": backend, "srv_name": name, "srv_addr": "127.0.0.1", "srv_port": str(port), **DOWN}
    known |= {"srv_uweight": "1", "srv_iweight": "1"}
    known |= dict.fromkeys(("srv_fqdn", "srvrecord", "srv_check_addr", "srv_agent_addr"), "-")
    return " ".join(known.get(column, "0") for column in COLUMNS)


def content(maintenance: str, stopped: Sequence[Server]) -> str:
    """Return the file of the servers' states: those in maintenance as they are, and those that are down."""
    kept = [line for line in maintenance.splitlines()[2:] if line]
    names = {tuple(line.split()[1:4:2]) for line in kept}
    further = [state_line(server) for server in stopped if server[:2] not in names]
    return "\n".join(("1", f"# {' '.join(COLUMNS)}", *kept, *further, ""))


def write_state(options: argparse.Namespace) -> None:
    """Write the file of the servers' states. Where that fails, HAProxy reads those in maintenance only."""
    try:
        text = Path(options.configuration[options.configuration.index("-f") + 1]).read_text(encoding="utf-8")
        stopped = down(servers(text), live_states(options.socket))
        _replace(options.state, content(_text(options.maintenance), stopped), mode=0o600)
    except Exception as error:  # HAProxy starts whatever happens here
        sys.stderr.write(f"[WARNING] servers that are down are not carried over: {error}\n")
        options.state.unlink(missing_ok=True)
        options.state.symlink_to(options.maintenance)


def launcher(options: argparse.Namespace) -> str:
    """Return what HAProxy executes to reload itself; where it cannot be written, that is HAProxy alone."""
    words = [__file__, *("--socket", options.socket), *("--maintenance", options.maintenance)]
    words += ["--state", str(options.state), "--launcher", str(options.launcher), "--"]
    try:
        _replace(options.launcher, f'#!/bin/sh\nexec {sys.executable} -I {" ".join(words)} "$@"\n', mode=0o700)
    except OSError as error:
        sys.stderr.write(f"[WARNING] a reload will not carry over which servers are down: {error}\n")
        return HAPROXY
    return str(options.launcher)


def _text(path: str) -> str:
    """Return the text of a file, none where it does not exist."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _replace(path: Path, text: str, *, mode: int) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.chmod(mode)
    partial.replace(path)


def main() -> None:
    """Write the state and become HAProxy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True, help="unix socket of HAProxy's runtime API")
    parser.add_argument("--maintenance", required=True, help="file of the servers in maintenance")
    parser.add_argument("--state", type=Path, required=True, help="file that HAProxy reads the servers' states from")
    parser.add_argument("--launcher", type=Path, required=True, help="script that a reload executes")
    parser.add_argument("configuration", nargs="+", metavar="OPTION", help="options of HAProxy, after --")
    options = parser.parse_args()
    if WAITS not in os.environ:
        write_state(options)
    os.execv(HAPROXY, [launcher(options), *options.configuration])  # noqa: S606 - the daemon itself


if __name__ == "__main__":
    main()
