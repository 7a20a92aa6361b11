"""The exporters of a database node: metrics of the machine, PostgreSQL, pgBouncer, the backups and the cache.

HAProxy, etcd, Patroni and the storage service export their own metrics and need no daemon here.
"""

from __future__ import annotations

import json

from observatory.nodes.pgbackrest import config_directory, config_file
from observatory.nodes.postgres import MONITOR_ROLE
from observatory.nodes.unit import LOOPBACK, Host, HttpReady, Paths, Unit
from observatory.settings import StackSettings

PRIORITY = 50
NODE_COLLECTORS = ("filesystem", "meminfo", "pressure", "textfile", "vmstat")
# One series for each table and index: a hypertable's chunks would make thousands of them.
COSTLY_COLLECTORS = ("stat_user_tables", "statio_user_tables")


def node_exporter(
    settings: StackSettings, paths: Paths, host: Host = LOOPBACK, *, volumes: tuple[str, ...] = ()
) -> Unit:
    """Return the exporter of the machine.

    It reports the file systems of the volumes, by mount point. Without volumes it reports the one that holds the data,
    as `/` relative to the data directory, because it reads the mount table of the machine and not of the sandbox.
    """
    root, mount_points = ("/", "|".join(volumes)) if volumes else (paths.data, "/")
    port = settings.ports.node_exporter
    return Unit(
        name="node-exporter",
        command=(
            "/usr/bin/prometheus-node-exporter",
            f"--web.listen-address={host.listen}:{port}",
            "--web.disable-exporter-metrics",
            "--collector.disable-defaults",
            *(f"--collector.{collector}" for collector in NODE_COLLECTORS),
            f"--collector.textfile.directory={paths.textfiles}",
            f"--path.rootfs={root}",
            f"--collector.filesystem.mount-points-include=^({mount_points})$",
            "--collector.filesystem.fs-types-exclude=^(rootfs|proc|sysfs|tmpfs)$",
        ),
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.node_exporter": port},
        directories=(paths.textfiles,),
    )


def postgres_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the exporter of PostgreSQL, which logs in by peer on the socket and needs no password."""
    port = settings.ports.postgres_exporter
    database = f"host={paths.postgres_socket} port={settings.ports.postgres} dbname={settings.database.name}"
    return Unit(
        name="postgres-exporter",
        command=(
            "/usr/bin/prometheus-postgres-exporter",
            f"--web.listen-address={host.listen}:{port}",
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


def pgbouncer_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the exporter of pgBouncer.

    pgBouncer accepts the role `pgbouncer` in its console without a password, over the socket and from its own operating
    system user. The exporter exits if pgBouncer does not run when it starts.
    """
    port = settings.ports.pgbouncer_exporter
    console = f"host={paths.run} port={settings.ports.pgbouncer} user=pgbouncer dbname=pgbouncer sslmode=disable"
    return Unit(
        name="pgbouncer-exporter",
        command=(
            "/usr/bin/prometheus-pgbouncer-exporter",
            f"--web.listen-address={host.listen}:{port}",
            f"--pgBouncer.connectionString={console}",
            "--log.level=warn",
        ),
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.pgbouncer_exporter": port},
    )


def pgbackrest_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the exporter of the backup repository, which runs `pgbackrest info` each minute."""
    port = settings.ports.pgbackrest_exporter
    return Unit(
        name="pgbackrest-exporter",
        command=(
            "/usr/bin/prometheus-pgbackrest-exporter",
            f"--web.listen-address={host.listen}:{port}",
            f"--backrest.config={config_file(paths)}",
            f"--backrest.config-include-path={config_directory(paths)}",
            "--collect.interval=60",
            "--log.level=warn",
        ),
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.pgbackrest_exporter": port},
    )


def cache_password_file(paths: Paths) -> str:
    """Return the path of the file with the password of the cache's exporter."""
    return f"{paths.config}/redis-exporter/passwords.json"


def cache_passwords(settings: StackSettings, password: str, *, address: str | None = None) -> str:
    """Return the content of that file: the password by the cache's address, in the format of `redis_exporter`."""
    return json.dumps({address or _cache_address(settings): password})


def redis_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK, *, address: str | None = None) -> Unit:
    """Return the exporter of the cache at `address` (a `redis://` URL); default: the cache on this machine."""
    port = settings.ports.redis_exporter
    return Unit(
        name="redis-exporter",
        command=(
            "/usr/bin/prometheus-redis-exporter",
            f"-web.listen-address={host.listen}:{port}",
            f"-redis.addr={address or _cache_address(settings)}",
            f"-redis.password-file={cache_password_file(paths)}",
        ),
        ready=HttpReady(port=port, path="/"),
        priority=PRIORITY,
        ports={"ports.redis_exporter": port},
    )


def _cache_address(settings: StackSettings) -> str:
    return f"redis://127.0.0.1:{settings.ports.valkey}"
