"""The collector: metrics of the database that no packaged exporter has, and failed logins from the servers' logs.

On `local` Prometheus reads it through the balancer's guarded listener, over a unix socket of the stack's user, and the
logs are the supervisor's files. On AWS it has a port, and reads systemd's journal. Its program is there among the
files of the machine's secret, because EC2 limits the size of user data.
"""

from __future__ import annotations

from collections.abc import Mapping

from observatory.nodes.cloud_init import PROGRAMS, program_text
from observatory.nodes.postgres import MONITOR_ROLE, OWNER_ROLE
from observatory.nodes.systemd import service_name
from observatory.nodes.unit import Host, HttpReady, Paths, Unit
from observatory.nodes.web import guarded_probe
from observatory.settings import AwsSettings, LocalSettings, StackSettings

PROGRAM = "collector.py"
PATH = "/collector"  # of the metrics, on the balancer's statistics port
PRIORITY = 50
JOURNAL_GROUP = "systemd-journal"  # which may read the journal of all units
_LOGGED = {"postgresql": "patroni", "pgbouncer": "pgbouncer"}  # the unit that writes the log of each server


def metrics_socket(paths: Paths) -> str:
    """Return the path of the socket that HAProxy forwards scrapes to."""
    return f"{paths.run}/collector.sock"


def program_file(paths: Paths) -> str:
    """Return the path of the program."""
    return f"{paths.config}/collector/{PROGRAM}"


def program() -> str:
    """Return the program without comments."""
    return program_text(PROGRAM)


def collector(settings: LocalSettings, paths: Paths) -> Unit:
    """Return the collector of a local stack, which starts after the balancer."""
    logs = {server: f"{paths.log}/{unit}.log" for server, unit in _LOGGED.items()}
    return Unit(
        name="collector",
        command=_command(settings, paths, logs=logs, listen=metrics_socket(paths)),
        ready=guarded_probe(paths, settings.ports.balancer_stats, PATH),
        priority=PRIORITY,
        ports={},
        files={program_file(paths): (PROGRAMS / PROGRAM).read_text(encoding="utf-8")},
        directories=(_state_directory(paths),),
    )


def machine_collector(settings: AwsSettings, paths: Paths, host: Host) -> Unit:
    """Return the collector of a database's machine, which has `program()` as its `program_file`."""
    port = settings.ports.collector
    logs = {server: service_name(unit) for server, unit in _LOGGED.items()}
    return Unit(
        name="collector",
        command=_command(settings, paths, logs=logs, listen=f"{host.listen}:{port}"),
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.collector": port},
        directories=(_state_directory(paths),),
        groups=(JOURNAL_GROUP,),
    )


def _state_directory(paths: Paths) -> str:
    return f"{paths.data}/collector"


def _command(settings: StackSettings, paths: Paths, *, logs: Mapping[str, str], listen: str) -> tuple[str, ...]:
    database = f"host={paths.postgres_socket} port={settings.ports.postgres} dbname={settings.database.name}"
    return (
        *(
            "/usr/bin/python3",
            "-I",
            program_file(paths),
            "--database",
            database,
            "--monitor",
            MONITOR_ROLE,
            "--owner",
            OWNER_ROLE,
        ),
        *(word for server, log in logs.items() for word in ("--log", f"{server}={log}")),
        *("--state", f"{_state_directory(paths)}/state.json", "--listen", listen),
    )
