"""Alerts on the integrity of the data: replicas that are behind, deadlocks, and damaged pages."""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import logs, query, superuser
from monitoring.alerts.scenarios import BRIDGE, gauge
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

WINDOW = "5m"
LAG_BYTES = 268_435_456  # 256 MiB, sixteen segments of WAL, where a replica cannot say how old its data is


def _replication_lag(scope: Scope) -> str:
    """Return an expression whose label `unit` says what its value is."""
    age = scope.select("pg_replication_lag_seconds")
    behind = scope.select("pg_stat_replication_pg_wal_lsn_diff")
    limit = scope.thresholds.replication_lag_seconds
    conditions = {
        "s": f"max by (stack, instance) (last_over_time({age}[{BRIDGE}])) > {limit}",
        "bytes": f"max by (stack, application_name) (last_over_time({behind}[{BRIDGE}])) > {LAG_BYTES}",
    }
    return "\nor ".join(
        f'label_replace({condition}, "unit", "{unit}", "", "")' for unit, condition in conditions.items()
    )


def _deadlocks(scope: Scope) -> str:
    return f"sum by (stack, datname) (increase({scope.select('pg_stat_database_deadlocks')}[{WINDOW}])) > 0"


def _checksum_failures(scope: Scope) -> str:
    failures = scope.select("storage_pg_checksum_failures_total")
    return f"max by (stack, datname) (last_over_time({failures}[{BRIDGE}])) > 0"


_LAG = 'pg_replication_lag_seconds{{stack="test",job="postgres",instance="{}"}}'
_BEHIND = 'pg_stat_replication_pg_wal_lsn_diff{{stack="test",job="postgres",instance="one",application_name="{}"}}'

REPLICATION_LAG_HIGH = Alert(
    name="StorageReplicationLagHigh",
    expression=_replication_lag,
    pending="30s",
    severity="warning",
    component="database",
    category="data-integrity",
    summary="A replica is behind the primary",
    description="{{ $labels.instance }}{{ $labels.application_name }} is {{ $value }} {{ $labels.unit }} behind.",
    runbook=Runbook(
        meaning=(
            "A replica has data older than `alerts.replication_lag_seconds`, or has not replayed the last 256 MiB "
            "of WAL."
        ),
        impact="Reads from the replica return old data. A failover to it takes longer, or is refused.",
        diagnosis=(
            Step(
                "Compare the lag of all members.",
                ("observatory exec patroni -- patronictl -c /srv/etc/patroni list",),
            ),
            Step(
                "Check whether the replay is paused, and which query on the replica it waits for.",
                (superuser("SELECT pg_is_wal_replay_paused()"),),
            ),
        ),
        remedy=(
            Step("Resume the replay on the replica.", (superuser("SELECT pg_wal_replay_resume()"),)),
            Step("If its disk or network is slower than the primary's: reduce the writes, or replace the machine."),
            Step("If the WAL that it needs is gone: `patronictl reinit` copies it from the leader."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Pause the replay on a replica.",
    scenarios=(
        *gauge(
            _LAG.format("two"),
            at=30,
            beyond=31,
            pending=30,
            labels={"instance": "two", "unit": "s"},
            description="two is 31 s behind.",
            others={_LAG.format("one"): "0x200", _BEHIND.format("two"): "0x200"},
        ),
        *gauge(
            _BEHIND.format("two"),
            at=268435456,
            beyond=270000000,
            pending=30,
            labels={"application_name": "two", "unit": "bytes"},
            description="two is 2.7e+08 bytes behind.",
            others={_LAG.format("one"): "0x200", _BEHIND.format("three"): "0x200"},
        ),
    ),
)

_DEADLOCKS = 'pg_stat_database_deadlocks{{stack="test",job="postgres",instance="one",datname="{}"}}'

DEADLOCKS = Alert(
    name="StorageDeadlocks",
    expression=_deadlocks,
    severity="warning",
    component="database",
    category="data-integrity",
    summary="Transactions block each other",
    description="{{ $value | humanize }} deadlocks in {{ $labels.datname }} in 5 min.",
    runbook=Runbook(
        meaning="Two transactions waited for each other, and PostgreSQL ended one of them.",
        impact="The ended request failed and has to be sent again. No data is lost.",
        diagnosis=(
            Step(
                "The log has process, login and application of the session that PostgreSQL ended, and the lock that it "
                "waited for (`detected deadlock`). Statements are in no log: they may contain prompts.",
                (logs("patroni"),),
            ),
            Step(
                "List the sessions that wait now.",
                (
                    query(
                        "SELECT pid, usename, pg_blocking_pids(pid) FROM pg_stat_activity WHERE "
                        "cardinality(pg_blocking_pids(pid)) > 0"
                    ),
                ),
            ),
        ),
        remedy=(
            Step("Correct the application: all transactions must lock rows and tables in the same order."),
            Step("No action ends the alert sooner: it ends five minutes after the last deadlock."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Let two sessions lock two rows in opposite order.",
    scenarios=(
        Scenario(
            name="one deadlock",
            interval="15s",
            series={_DEADLOCKS.format("o"): "0x20 1x60", _DEADLOCKS.format("p"): "0x80"},
            quiet=("5m", "10m15s"),
            fires=tuple(
                Firing(at=at, labels={"datname": "o"}, description="1 deadlocks in o in 5 min.")
                for at in ("5m15s", "9m45s")
            ),
        ),
        Scenario(
            name="a deadlock in a short history",
            interval="15s",
            series={_DEADLOCKS.format("o"): "0 1 1 1 1"},
            quiet=("0s",),
            fires=(Firing(at="30s", labels={"datname": "o"}, description="1 deadlocks in o in 5 min."),),
        ),
    ),
)

_CHECKSUMS = 'storage_pg_checksum_failures_total{{stack="test",job="collector",datname="{}"}}'

CHECKSUM_FAILURE = Alert(
    name="StorageChecksumFailure",
    expression=_checksum_failures,
    severity="critical",
    component="database",
    category="data-integrity",
    summary="PostgreSQL has read a damaged page",
    description="{{ $value }} pages of {{ $labels.datname }} had a wrong checksum since the statistics were reset.",
    runbook=Runbook(
        meaning=(
            "The checksum of a page did not match its content: the disk, the memory or a program below PostgreSQL "
            "has changed it."
        ),
        impact=(
            "Statements that read the page fail with SQLSTATE XX001. New backups copy the damage; earlier ones do "
            "not expire."
        ),
        diagnosis=(
            Step(
                "The error that the client got names the file and the block. The log has no errors of sessions in the "
                "stack's database."
            ),
            Step(
                "A full backup reads every page. It fails, is kept, and names the damaged files with their tables or "
                "indexes.",
                ("observatory backup create --type full",),
            ),
            Step("Find whether earlier backups are sound.", ("observatory backup verify",)),
            Step("Check the machine's disk and memory with `dmesg` and `smartctl`."),
        ),
        remedy=(
            Step(
                "Stop nothing and delete nothing. A damaged index: `REINDEX INDEX CONCURRENTLY`. A damaged "
                "table: see the runbook of StorageBackupDamaged."
            ),
            Step("When all pages are sound again, make a full backup.", ("observatory backup create --type full",)),
            Step(
                "Reset the counter of the stack's database. That of another database is reset in a session there.",
                (superuser("SELECT pg_stat_reset()"),),
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Change a byte in a table's file, and read it.",
    scenarios=gauge(
        _CHECKSUMS.format("o"),
        at=0,
        beyond=1,
        labels={"datname": "o"},
        description="1 pages of o had a wrong checksum since the statistics were reset.",
        others={_CHECKSUMS.format("(shared)"): "0x200"},
    ),
)

DATA_INTEGRITY = (REPLICATION_LAG_HIGH, DEADLOCKS, CHECKSUM_FAILURE)
