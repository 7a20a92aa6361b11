"""The exporters of a database node: what Prometheus reads of the machine and of PostgreSQL.

HAProxy, etcd, Patroni and the storage service export their own metrics and need no daemon here.
"""

from __future__ import annotations

from observatory.nodes.postgres import MONITOR_ROLE
from observatory.nodes.unit import HttpReady, Paths, Unit
from observatory.settings import StackSettings

PRIORITY = 50
NODE_COLLECTORS = ("filesystem", "meminfo", "pressure", "textfile", "vmstat")
# One series for each table and index: a hypertable's chunks would make thousands of them.
COSTLY_COLLECTORS = ("stat_user_tables", "statio_user_tables")


def textfile_directory(paths: Paths) -> str:
    """Return where jobs of the host leave metrics as `<name>.prom`."""
    return f"{paths.data}/textfile"


def node_exporter(settings: StackSettings, paths: Paths) -> Unit:
    """Return the exporter of the machine.

    Its only file system is the one that holds the data: `/`, looked at from the data directory, because the mount
    table that it reads is the machine's and not the sandbox's.
    """
    port = settings.ports.node_exporter
    return Unit(
        name="node-exporter",
        command=(
            "/usr/bin/prometheus-node-exporter",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.disable-exporter-metrics",
            "--collector.disable-defaults",
            *(f"--collector.{collector}" for collector in NODE_COLLECTORS),
            f"--collector.textfile.directory={textfile_directory(paths)}",
            f"--path.rootfs={paths.data}",
            "--collector.filesystem.mount-points-include=^/$",
            "--collector.filesystem.fs-types-exclude=^(rootfs|proc|sysfs|tmpfs)$",
        ),
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.node_exporter": port},
        directories=(textfile_directory(paths),),
    )


def postgres_exporter(settings: StackSettings, paths: Paths) -> Unit:
    """Return the exporter of PostgreSQL, which logs in by peer on the socket: it has no password to keep."""
    port = settings.ports.postgres_exporter
    database = f"host={paths.postgres_socket} port={settings.ports.postgres} dbname={settings.database.name}"
    return Unit(
        name="postgres-exporter",
        command=(
            "/usr/bin/prometheus-postgres-exporter",
            f"--web.listen-address=127.0.0.1:{port}",
            *(f"--no-collector.{collector}" for collector in COSTLY_COLLECTORS),
            "--log.level=warn",
        ),
        environment={
            "DATA_SOURCE_NAME": f"{database} user={MONITOR_ROLE} sslmode=disable application_name=postgres_exporter"
        },
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.postgres_exporter": port},
    )
