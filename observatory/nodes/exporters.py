"""The exporters of a database node: metrics of the machine, PostgreSQL, pgBouncer, the backups and the cache.

HAProxy, etcd, Patroni and the storage service export their own metrics and need no daemon here.
"""

from __future__ import annotations

import json

from observatory.nodes.pgbackrest import config_directory, config_file
from observatory.nodes.postgres import MONITOR_ROLE
from observatory.nodes.tls import MONITORING, authority_file, combined_file
from observatory.nodes.unit import LOOPBACK, Host, Paths, Unit
from observatory.nodes.valkey import EXPORTER_USER
from observatory.nodes.web import WebAccess
from observatory.settings import StackSettings

PRIORITY = 50
NODE_COLLECTORS = (
    *("cpu", "diskstats", "filesystem", "loadavg", "meminfo", "netdev", "pressure", "textfile", "vmstat"),
)
# One series for each table and index: a hypertable's chunks would make thousands of them.
COSTLY_COLLECTORS = ("stat_user_tables", "statio_user_tables")
MORE_COLLECTORS = ("long_running_transactions", "stat_statements")  # which are off by default


def node_exporter(
    settings: StackSettings, paths: Paths, host: Host = LOOPBACK, *, volumes: tuple[str, ...] = ()
) -> Unit:
    """Return the exporter of the machine.

    It reports the file systems of the volumes, by mount point. Without volumes it reports the one that holds the data,
    as `/` relative to the data directory, because it reads the mount table of the machine and not of the sandbox. The
    sandbox has no /sys either: the directory in its place lists one processor, without which 1.9.0 ends by a panic.
    """
    root, mount_points, system = ("/", "|".join(volumes), None) if volumes else (paths.data, "/", f"{paths.data}/sysfs")
    port, web = settings.ports.node_exporter, WebAccess(name="node-exporter", paths=paths, host=host)
    return Unit(
        name="node-exporter",
        command=(
            "/usr/bin/prometheus-node-exporter",
            f"--web.listen-address={host.listen}:{port}",
            *web.options,
            "--web.disable-exporter-metrics",
            "--collector.disable-defaults",
            *(f"--collector.{collector}" for collector in NODE_COLLECTORS),
            f"--collector.textfile.directory={paths.textfiles}",
            f"--path.rootfs={root}",
            *((f"--path.sysfs={system}",) if system else ()),
            f"--collector.filesystem.mount-points-include=^({mount_points})$",
            "--collector.filesystem.fs-types-exclude=^(rootfs|proc|sysfs|tmpfs)$",
        ),
        ready=web.ready(port, "/"),
        watches_secrets=web.guarded or None,
        priority=PRIORITY,
        ports={"ports.node_exporter": port},
        files=web.files,
        directories=(paths.textfiles, *((f"{system}/devices/system/cpu/cpu0",) if system else ())),
    )


def postgres_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the exporter of PostgreSQL, which logs in by peer on the socket and needs no password."""
    port, web = settings.ports.postgres_exporter, WebAccess(name="postgres-exporter", paths=paths, host=host)
    database = f"host={paths.postgres_socket} port={settings.ports.postgres} dbname={settings.database.name}"
    return Unit(
        name="postgres-exporter",
        command=(
            "/usr/bin/prometheus-postgres-exporter",
            f"--web.listen-address={host.listen}:{port}",
            *web.options,
            *(f"--no-collector.{collector}" for collector in COSTLY_COLLECTORS),
            *(f"--collector.{collector}" for collector in MORE_COLLECTORS),
            "--log.level=warn",
        ),
        environment={
            "DATA_SOURCE_NAME": f"{database} user={MONITOR_ROLE} sslmode=disable application_name=postgres_exporter"
        },
        ready=web.ready(port, "/"),
        watches_secrets=web.guarded or None,
        priority=PRIORITY,
        ports={"ports.postgres_exporter": port},
        files=web.files,
    )


def pgbouncer_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the exporter of pgBouncer.

    pgBouncer accepts the role `pgbouncer` in its console without a password, over the socket and from its own operating
    system user. The exporter exits if pgBouncer does not run when it starts.
    """
    port, web = settings.ports.pgbouncer_exporter, WebAccess(name="pgbouncer-exporter", paths=paths, host=host)
    console = f"host={paths.run} port={settings.ports.pgbouncer} user=pgbouncer dbname=pgbouncer sslmode=disable"
    return Unit(
        name="pgbouncer-exporter",
        command=(
            "/usr/bin/prometheus-pgbouncer-exporter",
            f"--web.listen-address={host.listen}:{port}",
            *web.options,
            f"--pgBouncer.connectionString={console}",
            "--log.level=warn",
        ),
        ready=web.ready(port, "/"),
        watches_secrets=web.guarded or None,
        priority=PRIORITY,
        ports={"ports.pgbouncer_exporter": port},
        files=web.files,
    )


def pgbackrest_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK) -> Unit:
    """Return the exporter of the backup repository, which runs `pgbackrest info` each minute."""
    port, web = settings.ports.pgbackrest_exporter, WebAccess(name="pgbackrest-exporter", paths=paths, host=host)
    return Unit(
        name="pgbackrest-exporter",
        command=(
            "/usr/bin/prometheus-pgbackrest-exporter",
            f"--web.listen-address={host.listen}:{port}",
            *web.options,
            f"--backrest.config={config_file(paths)}",
            f"--backrest.config-include-path={config_directory(paths)}",
            "--collect.interval=60",
            "--log.level=warn",
        ),
        ready=web.ready(port, "/"),
        watches_secrets=web.guarded or None,
        priority=PRIORITY,
        ports={"ports.pgbackrest_exporter": port},
        files=web.files,
    )


def cache_password_file(paths: Paths) -> str:
    """Return the path of the file with the password of the cache's exporter."""
    return f"{paths.config}/redis-exporter/passwords.json"


def cache_passwords(settings: StackSettings, password: str, *, address: str | None = None) -> str:
    """Return the content of that file: the password by address and user, in the format of `redis_exporter`."""
    return json.dumps({address or f"redis://{EXPORTER_USER}@127.0.0.1:{settings.ports.valkey}": password})


def redis_exporter(settings: StackSettings, paths: Paths, host: Host = LOOPBACK, *, address: str | None = None) -> Unit:
    """Return the exporter of the cache at `address` (a `redis://` URL); default: the cache on this machine.

    Its endpoint `/scrape` reads any cache and any keys that a client names. It therefore exports no value and no
    configuration; the cache on this machine lets it run a few commands without keys, and its listener requires a client
    certificate there.
    """
    port, web = settings.ports.redis_exporter, WebAccess(name="redis-exporter", paths=paths, host=host)
    return Unit(
        name="redis-exporter",
        command=(
            "/usr/bin/prometheus-redis-exporter",
            f"-web.listen-address={host.listen}:{port}",
            *(_redis_exporter_tls(paths) if web.guarded else ()),
            f"-redis.addr={address or _cache_address(settings)}",
            f"-redis.password-file={cache_password_file(paths)}",
            *(() if address else (f"-redis.user={EXPORTER_USER}",)),
            "-disable-exporting-key-values",
            "-config-command=-",
        ),
        ready=web.ready(port, "/"),
        priority=PRIORITY,
        ports={"ports.redis_exporter": port},
    )


def _redis_exporter_tls(paths: Paths) -> tuple[str, ...]:
    """Return the options that do what the exporter toolkit's file does; this exporter does not use the toolkit."""
    certificate = combined_file(paths, MONITORING)
    return (
        f"-tls-server-cert-file={certificate}",
        f"-tls-server-key-file={certificate}",
        f"-tls-server-ca-cert-file={authority_file(paths)}",
    )


def _cache_address(settings: StackSettings) -> str:
    return f"redis://127.0.0.1:{settings.ports.valkey}"
