"""Alerts on connections: those of the pooler, and those of PostgreSQL itself.

The series of pg_stat_activity come and go with their sessions, so a failed scrape is not bridged there: the last value
of a session that has ended would be used for a minute.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import query
from monitoring.alerts.scenarios import BRIDGE, crossing, gauge, vanishing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

SATURATED_SHARE = 0.9  # of a pool
WAITED = "20s"  # twice as long as pgBouncer lets a client wait


def _exhausted(scope: Scope) -> str:
    """Return an expression for the longest wait of a pool's clients, of all scrapes within WAITED.

    pgBouncer ends a client that has waited for 10 s. Where many begin to wait at once, the longest wait therefore falls
    to zero every 10 s while the pool stays exhausted. The `for` is longer than WAITED, so one long wait fires nothing.
    """
    waited = scope.select("pgbouncer_pools_client_maxwait_seconds")
    limit = scope.thresholds.pool_wait_seconds
    return f"max by (stack, database, user) (max_over_time({waited}[{WAITED}])) > {limit}"


def _saturated(scope: Scope) -> str:
    """Return an expression for the share of each pool in use; a pool belongs to a database and a user."""
    active = scope.select("pgbouncer_pools_server_active_connections")
    size = scope.select("pgbouncer_databases_pool_size")
    sizes = f'label_replace(last_over_time({size}[{BRIDGE}]), "database", "$1", "name", "(.+)")'
    return (
        f"max by (stack, database, user) (last_over_time({active}[{BRIDGE}]))\n"
        f"/ on (stack, database) group_left () max by (stack, database) ({sizes}) > {SATURATED_SHARE}"
    )


def _backends(scope: Scope) -> str:
    used = scope.select("pg_stat_activity_count", 'backend_type="client backend"')
    allowed, reserved = (
        f"max by (stack, instance) (last_over_time({scope.select(f'pg_settings_{name}')}[{BRIDGE}]))"
        for name in ("max_connections", "superuser_reserved_connections")
    )
    limit = scope.thresholds.backends_percent / 100
    free = f"({allowed} - on (stack, instance) {reserved})"
    return f"sum by (stack, instance) ({used})\n/ on (stack, instance) {free} > {limit:g}"


def _idle_in_transaction(scope: Scope) -> str:
    age = scope.select(
        "pg_stat_activity_max_tx_duration",
        'state=~"idle in transaction.*"',  # or aborted
        'application_name!~"observatory:.+"',  # a dump keeps its snapshot in such a session
    )
    return f"max by (stack, datname) ({age}) > {scope.thresholds.idle_in_transaction_seconds}"


_SESSIONS = Step(
    "List the sessions, the oldest transaction first.",
    (
        query(
            "SELECT pid, usename, application_name, state, now() - xact_start AS age FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' ORDER BY xact_start"
        ),
    ),
)
_END_IDLE = Step(
    "End the sessions that hold a connection in an open transaction and do nothing. Their work is rolled back.",
    (
        query(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in "
            "transaction%' AND pid <> pg_backend_pid() AND <ordinary>"
        ),
    ),
)
_WAITED = 'pgbouncer_pools_client_maxwait_seconds{{stack="test",job="pgbouncer",database="{}",user="writer_a"}}'
_EXHAUSTED_SERIES = {_WAITED.format("pgbouncer"): "0x200"}
_WRITER = {"database": "observatory", "user": "writer_a"}
_WAITS = "A client of writer_a has waited 5.2 s for a connection to observatory."

EXHAUSTED = Alert(
    name="StoragePoolExhausted",
    expression=_exhausted,
    pending="30s",
    severity="critical",
    component="database",
    category="connection-pool",
    summary="Clients wait for a connection of the pooler",
    description="A client of {{ $labels.user }} has waited {{ $value }} s for a connection to {{ $labels.database }}.",
    runbook=Runbook(
        meaning=(
            "All connections of a pool are in use, and the first client in the queue has repeatedly waited longer than "
            "`alerts.pool_wait_seconds`."
        ),
        impact="Requests take longer. After 10 s pgBouncer ends a waiting client with an error.",
        diagnosis=(
            Step(
                "Check whether StorageLockWaits, StorageLongTransaction or StorageDatabaseDown fires. It is "
                "then the cause."
            ),
            _SESSIONS,
        ),
        remedy=(
            _END_IDLE,
            Step(
                "End statements that have run for more than a minute, except those of dumps and of deployments.",
                (
                    query(
                        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = "
                        "'client backend' AND state = 'active' AND query_start < now() - interval '1 minute' "
                        "AND pid <> pg_backend_pid() AND <ordinary>"
                    ),
                ),
            ),
            Step(
                "If the sessions are short and many, increase `database.pool_size` in the stack's settings and "
                "run `observatory up`."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Open more transactions than the pool has connections.",
    scenarios=(
        Scenario(
            name="all clients begin to wait at once, and pgBouncer ends them after 10 s",
            series=_EXHAUSTED_SERIES
            | {_WAITED.format("observatory"): "5x12 1.2 5.2 5 5.2 1.2 5.2 5 _ 5 5.2 5 5.2 5x30"},
            quiet=("1m35s", "2m25s"),
            fires=(
                Firing(at="1m40s", labels=_WRITER, description=_WAITS),
                Firing(at="2m20s", labels=_WRITER, description=_WAITS),
            ),
        ),
        Scenario(
            name="clients wait for longer than the limit now and then",
            series=_EXHAUSTED_SERIES | {_WAITED.format("observatory"): "0x10 5.2 0x5 5.2 0x5 5.2 0x20"},
            quiet=tuple(f"{seconds}s" for seconds in range(50, 150, 5)),
        ),
    ),
)

_ACTIVE = 'pgbouncer_pools_server_active_connections{{stack="test",job="pgbouncer",database="{}",user="{}"}}'
_SIZE = 'pgbouncer_databases_pool_size{{stack="test",job="pgbouncer",name="{}",database="{}",host="/run"}}'
_SIZES = {_SIZE.format("observatory", "o"): "100x300", _SIZE.format("pgbouncer", "pgbouncer"): "2x300"}
_SATURATED = "95% of the connections of writer_a to observatory are in use."

SATURATED = Alert(
    name="StoragePoolSaturated",
    expression=_saturated,
    pending="1m",
    severity="warning",
    component="database",
    category="connection-pool",
    summary="A pool of connections is nearly used up",
    description=(
        "{{ $value | humanizePercentage }} of the connections of {{ $labels.user }} to {{ $labels.database }} are "
        "in use."
    ),
    runbook=Runbook(
        meaning="More than 90 % of the connections that pgBouncer may open for a login are in use.",
        impact="None yet. With more load, requests wait: see StoragePoolExhausted.",
        diagnosis=(_SESSIONS,),
        remedy=(
            _END_IDLE,
            Step(
                "If the load has grown, increase `database.pool_size` in the stack's settings and run `observatory up`."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Use all connections of a pool for more than a minute.",
    scenarios=(
        *gauge(
            _ACTIVE.format("observatory", "writer_a"),
            at=90,
            beyond=94.4,
            pending=60,
            labels={"database": "observatory", "user": "writer_a"},
            description="94.4% of the connections of writer_a to observatory are in use.",
            others={
                **_SIZES,
                _ACTIVE.format("observatory", "reader_a"): "1x300",
                _ACTIVE.format("pgbouncer", "pgbouncer"): "1x300",
            },
        ),
        vanishing(
            _SIZE.format("observatory", "o"),
            beyond=100,
            pending=60,
            labels={"database": "observatory", "user": "writer_a"},
            description=_SATURATED,
            others={
                _ACTIVE.format("observatory", "writer_a"): "95x300",
                _SIZE.format("pgbouncer", "pgbouncer"): "2x300",
                _ACTIVE.format("pgbouncer", "pgbouncer"): "1x300",
            },
        ),
    ),
)

_COUNT = 'pg_stat_activity_count{{stack="test",instance="{}",datname="o",state="active",backend_type="{}"}}'
_SETTING = 'pg_settings_{}{{stack="test",instance="{}"}}'
_SETTINGS = {
    _SETTING.format("max_connections", "one"): "203x300",
    _SETTING.format("superuser_reserved_connections", "one"): "3x300",
    _SETTING.format("max_connections", "two"): "1000x300",
    _SETTING.format("superuser_reserved_connections", "two"): "3x300",
    _COUNT.format("one", "parallel worker"): "30x300",
    _COUNT.format("two", "client backend"): "100x300",
}


def _without(name: str) -> dict[str, str]:
    return {series: values for series, values in _SETTINGS.items() if series != _SETTING.format(name, "one")}


BACKENDS_HIGH = Alert(
    name="StorageBackendsHigh",
    expression=_backends,
    pending="1m",
    severity="warning",
    component="database",
    category="connection-pool",
    summary="PostgreSQL has few connections left",
    description="{{ $value | humanizePercentage }} of the connections of {{ $labels.instance }} are in use.",
    runbook=Runbook(
        meaning=(
            "More than 85 % (`alerts.backends_percent`) of the connections that are not reserved for superusers "
            "are in use."
        ),
        impact=(
            "When none is left, new sessions fail with SQLSTATE 53300: the pooler's, those of deployments and of "
            "administrators."
        ),
        diagnosis=(
            _SESSIONS,
            Step(
                "Count the sessions of each application.",
                (
                    query(
                        "SELECT usename, application_name, count(*) FROM pg_stat_activity GROUP BY 1, 2 ORDER BY 3 DESC"
                    ),
                ),
            ),
        ),
        remedy=(
            _END_IDLE,
            Step(
                "End sessions that have been idle for more than a minute and belong neither to the pooler nor to a "
                "deployment.",
                (
                    query(
                        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = "
                        "'client backend' AND state = 'idle' AND state_change < now() - interval '1 minute' "
                        "AND client_addr IS NOT NULL AND <ordinary>"
                    ),
                ),
            ),
            Step(
                "If all sessions are needed, increase `database.max_connections` in the stack's settings and "
                "run `observatory up`, which restarts PostgreSQL."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Open sessions.",
    scenarios=(
        crossing(
            _COUNT.format("one", "client backend"),
            at=170,
            beyond=178,
            pending=60,
            labels={"instance": "one"},
            description="89% of the connections of one are in use.",
            others=_SETTINGS,
        ),
        *(
            vanishing(
                _SETTING.format(name, "one"),
                beyond=value,
                pending=60,
                labels={"instance": "one"},
                description="89% of the connections of one are in use.",
                others={**_without(name), _COUNT.format("one", "client backend"): "178x300"},
            )
            for name, value in (("max_connections", 203), ("superuser_reserved_connections", 3))
        ),
    ),
)

_AGE = 'pg_stat_activity_max_tx_duration{{stack="test",instance="one",datname="o",usename="{}",state="{}"}}'
_DUMP = _AGE.format("postgres", "idle in transaction").replace("}", ',application_name="observatory:dump"}')

IDLE_IN_TRANSACTION = Alert(
    name="StorageIdleInTransaction",
    expression=_idle_in_transaction,
    pending="10s",
    severity="warning",
    component="database",
    category="connection-pool",
    summary="A session holds an open transaction and does nothing",
    description="The oldest idle transaction in {{ $labels.datname }} is {{ $value }} s old.",
    runbook=Runbook(
        meaning="A client has started a transaction, and sends neither a statement nor the end of the transaction.",
        impact=(
            "Its locks block others, and dead rows that it might see are not removed. PostgreSQL ends the session "
            "after 5 minutes."
        ),
        diagnosis=(_SESSIONS,),
        remedy=(
            _END_IDLE,
            Step("Correct the application: it must not wait for a network or a person inside a transaction."),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="BEGIN, and wait.",
    scenarios=(
        crossing(
            _AGE.format("a", "idle in transaction"),
            at=120,
            beyond=125,
            pending=10,
            labels={"datname": "o"},
            description="The oldest idle transaction in o is 125 s old.",
            others={_AGE.format("b", "active"): "500x200", _DUMP: "500x200"},
        ),
        Scenario(
            name="the transaction has failed",
            series={_AGE.format("a", "idle in transaction (aborted)"): "125x60"},
            fires=(
                Firing(at="1m", labels={"datname": "o"}, description="The oldest idle transaction in o is 125 s old."),
            ),
        ),
    ),
)

CONNECTION_POOL = (EXHAUSTED, SATURATED, BACKENDS_HIGH, IDLE_IN_TRANSACTION)
