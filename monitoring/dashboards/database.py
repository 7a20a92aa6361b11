"""PostgreSQL, pgBouncer and the machine they run on."""

from __future__ import annotations

from monitoring.dashboards.model import Dashboard, Panel, Query, Section, Thresholds, Unbounded
from monitoring.dashboards.shared import (
    ALERTED,
    AVAILABLE_DISK,
    COLLECTOR_QUERIES,
    DOWN,
    INACTIVE_SLOTS,
    PRIMARIES,
    READ_ONLY,
    UP,
)

LOAD = Unbounded(reason="The usual rate depends on the customers.")
OWN = 'datname!~"template.*|postgres|"'

AVAILABILITY = Section(
    title="Availability",
    panels=(
        Panel(
            title="PostgreSQL",
            description="Whether the exporter can connect to PostgreSQL. Without it all writes and reads fail.",
            unit="state",
            states=UP,
            width=6,
            queries=(Query(expression='pg_up{stack="$stack"}', legend="{{instance}}"),),
            thresholds=DOWN,
            alerts=("StorageDatabaseDown",),
        ),
        READ_ONLY,
        PRIMARIES,
        INACTIVE_SLOTS,
        Panel(
            title="Replication lag",
            description="Time since the last transaction that a replica has replayed; 0 on a primary.",
            unit="seconds",
            width=6,
            queries=(Query(expression='pg_replication_lag_seconds{stack="$stack"}', legend="{{instance}}"),),
            thresholds=Thresholds(warning=ALERTED.replication_lag_seconds, critical=300),
            alerts=("StorageReplicationLagHigh",),
        ),
    ),
)

SESSIONS = Section(
    title="Sessions and pool",
    panels=(
        Panel(
            title="Sessions by state",
            description="Sessions of the database by state. Sessions that wait for a lock are `active`.",
            unit="count",
            stacked=True,
            queries=(
                Query(
                    expression=f'sum by (state) (pg_stat_activity_count{{stack="$stack",{OWN}}})', legend="{{state}}"
                ),
            ),
            thresholds=Unbounded(reason="The limit is in the next panel."),
        ),
        Panel(
            title="Used connections",
            description="Share of the connections of PostgreSQL that roles without special rights may use.",
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        'sum by (instance) (pg_stat_activity_count{stack="$stack"}) / (max by (instance) '
                        '(pg_settings_max_connections{stack="$stack"}) - max by (instance) '
                        '(pg_settings_superuser_reserved_connections{stack="$stack"}))'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.backends_percent / 100, critical=0.95),
            alerts=("StorageBackendsHigh",),
        ),
        Panel(
            title="Oldest open transaction",
            description=(
                "Age of the oldest transaction by state. `idle in transaction` holds locks and keeps rows from being "
                "cleaned up while it does nothing."
            ),
            unit="seconds",
            queries=(
                Query(
                    expression=(
                        'max by (state) (pg_stat_activity_max_tx_duration{stack="$stack",state=~"active|idle in.*"})'
                    ),
                    legend="{{state}}",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.idle_in_transaction_seconds, critical=ALERTED.transaction_seconds),
            alerts=("StorageIdleInTransaction", "StorageLongTransaction"),
        ),
        Panel(
            title="Clients of pgBouncer",
            description="Clients with a server connection, and clients that wait for one.",
            unit="count",
            queries=(
                Query(
                    expression='sum by (stack) (pgbouncer_pools_client_active_connections{stack="$stack"})',
                    legend="active",
                ),
                Query(
                    expression='sum by (stack) (pgbouncer_pools_client_waiting_connections{stack="$stack"})',
                    legend="waiting",
                ),
            ),
            thresholds=Unbounded(reason="How long clients wait is in the next panel."),
        ),
        Panel(
            title="Wait for a server connection",
            description="How long the oldest client has waited for a connection to PostgreSQL, by database.",
            unit="seconds",
            queries=(
                Query(
                    expression='max by (database) (pgbouncer_pools_client_maxwait_seconds{stack="$stack"})',
                    legend="{{database}}",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=ALERTED.pool_wait_seconds),
            alerts=("StoragePoolExhausted",),
        ),
        Panel(
            title="Used pool",
            description="Share of the pool's connections to PostgreSQL that run a transaction, by database.",
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        'sum by (database) (pgbouncer_pools_server_active_connections{stack="$stack"}) / on (database) '
                        '(max by (database) (label_replace(pgbouncer_databases_pool_size{stack="$stack"}, "database", '
                        '"$1", "name", "(.+)")) > 0)'
                    ),
                    legend="{{database}}",
                ),
            ),
            thresholds=Thresholds(warning=0.9, critical=1),
            alerts=("StoragePoolSaturated",),
        ),
    ),
)

STATEMENTS = Section(
    title="Transactions and statements",
    panels=(
        Panel(
            title="Transactions",
            description="Transactions that were committed and rolled back in the stack's database.",
            unit="per second",
            queries=(
                Query(
                    expression=f'sum by (stack) (rate(pg_stat_database_xact_commit{{stack="$stack",{OWN}}}[$window]))',
                    legend="committed",
                ),
                Query(
                    expression=(
                        f'sum by (stack) (rate(pg_stat_database_xact_rollback{{stack="$stack",{OWN}}}[$window]))'
                    ),
                    legend="rolled back",
                ),
            ),
            thresholds=LOAD,
        ),
        Panel(
            title="Mean duration of statements",
            description="Time that PostgreSQL spends in a statement on average, of all statements in five minutes.",
            unit="seconds",
            queries=(
                Query(
                    expression=(
                        'sum by (stack) (rate(pg_stat_statements_seconds_total{stack="$stack"}[5m])) / '
                        '(sum by (stack) (rate(pg_stat_statements_calls_total{stack="$stack"}[5m])) > 0)'
                    ),
                    legend="all statements",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.statement_seconds, critical=10),
            alerts=("StorageSlowStatements",),
        ),
        Panel(
            title="Sessions that wait for a lock",
            description="Sessions whose statement waits for a lock of another transaction.",
            unit="count",
            queries=(
                Query(
                    expression=(
                        'sum by (instance) (pg_stat_activity_count{stack="$stack",wait_event_type="Lock"}) or '
                        '0 * max by (instance) (pg_up{stack="$stack"})'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=10),
            alerts=("StorageLockWaits",),
        ),
        Panel(
            title="Deadlocks",
            description="Deadlocks of the last hour. PostgreSQL ends one of the transactions with an error.",
            unit="count",
            queries=(
                Query(
                    expression=f'sum by (datname) (increase(pg_stat_database_deadlocks{{stack="$stack",{OWN}}}[1h]))',
                    legend="{{datname}}",
                ),
            ),
            thresholds=Thresholds(warning=1, critical=10),
            alerts=("StorageDeadlocks",),
        ),
        Panel(
            title="Cache hit ratio",
            description="Share of the blocks that PostgreSQL found in its shared buffers.",
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        f'sum by (datname) (rate(pg_stat_database_blks_hit{{stack="$stack",{OWN}}}[5m])) / '
                        f'(sum by (datname) (rate(pg_stat_database_blks_hit{{stack="$stack",{OWN}}}[5m])) + '
                        f'sum by (datname) (rate(pg_stat_database_blks_read{{stack="$stack",{OWN}}}[5m])) > 0)'
                    ),
                    legend="{{datname}}",
                ),
            ),
            thresholds=Thresholds(warning=0.95, critical=0.8, falling=True),
        ),
        Panel(
            title="Temporary files",
            description="Bytes that statements write to temporary files because `work_mem` is too small for them.",
            unit="bytes per second",
            queries=(
                Query(
                    expression=(
                        f'sum by (datname) (rate(pg_stat_database_temp_bytes{{stack="$stack",{OWN}}}[$window]))'
                    ),
                    legend="{{datname}}",
                ),
            ),
            thresholds=Thresholds(warning=10_000_000, critical=100_000_000),
        ),
    ),
)

INTEGRITY = Section(
    title="Integrity and security",
    panels=(
        Panel(
            title="Checksum failures",
            description="Pages with a wrong checksum that PostgreSQL has read since its statistics were reset.",
            unit="count",
            kind="stat",
            queries=(
                Query(
                    expression='sum by (stack) (storage_pg_checksum_failures_total{stack="$stack"})',
                    legend="pages",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(critical=1),
            alerts=("StorageChecksumFailure",),
        ),
        Panel(
            title="Authentication failures",
            description="Logins of the last five minutes that PostgreSQL refused, by the server's log.",
            unit="count",
            queries=(
                Query(
                    expression='sum by (stack) (increase(storage_pg_auth_failures_total{stack="$stack"}[5m]))',
                    legend="refused logins",
                ),
            ),
            thresholds=Thresholds(warning=ALERTED.auth_failures + 1, critical=100),
            alerts=("StorageAuthFailures",),
        ),
        Panel(
            title="Sessions without TLS",
            description="Sessions over TCP that are not encrypted. Local sockets do not count.",
            unit="count",
            kind="stat",
            queries=(
                Query(
                    expression='sum by (stack) (storage_pg_plaintext_sessions{stack="$stack"})',
                    legend="sessions",
                    instant=True,
                ),
            ),
            thresholds=Thresholds(warning=1),
            alerts=("StoragePlaintextSessions",),
        ),
        COLLECTOR_QUERIES,
    ),
)

MACHINE = Section(
    title="Machine and storage",
    panels=(
        AVAILABLE_DISK,
        Panel(
            title="Database size",
            description="Size of each database with its indexes.",
            unit="bytes",
            queries=(
                Query(expression='pg_database_size_bytes{stack="$stack",datname!~"template.*"}', legend="{{datname}}"),
            ),
            thresholds=Unbounded(reason="How much space is left is on the overview."),
            alerts=("StorageDatabaseGrowthHigh",),
        ),
        Panel(
            title="WAL",
            description="Size of the write-ahead log on the disk. It grows while archiving fails or a replica is away.",
            unit="bytes",
            queries=(Query(expression='pg_wal_size_bytes{stack="$stack"}', legend="{{instance}}"),),
            thresholds=Thresholds(warning=4_000_000_000, critical=16_000_000_000),
        ),
        Panel(
            title="Processor",
            description="Share of the machine's processor time that is used.",
            unit="ratio",
            queries=(
                Query(
                    expression=(
                        '1 - avg by (instance) (rate(node_cpu_seconds_total{stack="$stack",mode="idle"}[$window]))'
                    ),
                    legend="{{instance}}",
                ),
            ),
            thresholds=Thresholds(warning=0.8, critical=0.95),
        ),
        Panel(
            title="Pressure",
            description="Share of the time in which tasks waited for the processor or for memory.",
            unit="ratio",
            queries=tuple(
                Query(expression=f'rate({metric}{{stack="$stack"}}[$window])', legend=legend)
                for metric, legend in (
                    ("node_pressure_cpu_waiting_seconds_total", "processor"),
                    ("node_pressure_memory_waiting_seconds_total", "memory"),
                )
            ),
            thresholds=Thresholds(warning=0.8, critical=0.95),
            alerts=("StorageCpuPressure",),
        ),
        Panel(
            title="I/O stall",
            description="Share of the time in which every task that could run waited for a disk.",
            unit="ratio",
            queries=(
                Query(
                    expression='rate(node_pressure_io_stalled_seconds_total{stack="$stack"}[$window])', legend="disk"
                ),
            ),
            thresholds=Thresholds(warning=0.25, critical=0.6),
            alerts=("StorageIoStall",),
        ),
        Panel(
            title="Memory",
            description="Memory that is available to new processes, and all memory of the machine.",
            unit="bytes",
            queries=(
                Query(expression='node_memory_MemAvailable_bytes{stack="$stack"}', legend="available"),
                Query(expression='node_memory_MemTotal_bytes{stack="$stack"}', legend="total"),
            ),
            thresholds=Unbounded(reason="The available share is on the overview."),
            alerts=("StorageMemoryPressure",),
        ),
        Panel(
            title="Disk traffic",
            description="Bytes that the machine reads from its disks and writes to them.",
            unit="bytes per second",
            queries=(
                Query(
                    expression='sum by (stack) (rate(node_disk_read_bytes_total{stack="$stack"}[$window]))',
                    legend="read",
                ),
                Query(
                    expression='sum by (stack) (rate(node_disk_written_bytes_total{stack="$stack"}[$window]))',
                    legend="written",
                ),
            ),
            thresholds=Unbounded(reason="The limit is the disk's; how long tasks wait for it is in Pressure."),
        ),
        Panel(
            title="Network traffic",
            description="Bytes that the machine receives and sends, without the loopback device.",
            unit="bytes per second",
            queries=(
                Query(
                    expression=(
                        'sum by (stack) (rate(node_network_receive_bytes_total{stack="$stack",device!="lo"}[$window]))'
                    ),
                    legend="received",
                ),
                Query(
                    expression=(
                        'sum by (stack) (rate(node_network_transmit_bytes_total{stack="$stack",device!="lo"}[$window]))'
                    ),
                    legend="sent",
                ),
            ),
            thresholds=Unbounded(reason="The limit is the network's."),
            empty="The machine has no network device but the loopback one.",
        ),
    ),
)

DATABASE = Dashboard(
    name="database",
    title="Storage: database",
    description="PostgreSQL and pgBouncer, and the machine they run on.",
    sections=(AVAILABILITY, SESSIONS, STATEMENTS, INTEGRITY, MACHINE),
)
