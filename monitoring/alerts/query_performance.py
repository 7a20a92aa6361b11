"""Alerts on queries: slow statements, sessions that wait for locks, transactions that run for long."""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import query
from monitoring.alerts.scenarios import crossing
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

WINDOW = "5m"
MINIMUM_CALLS = 3  # in the window: a migration runs each statement once


def _slow_statements(scope: Scope) -> str:
    """Return an expression for the mean duration of each statement that is repeated."""
    labels = "stack, datname, user, queryid"
    calls = f"sum by ({labels}) (increase({scope.select('pg_stat_statements_calls_total')}[{WINDOW}]))"
    seconds = f"sum by ({labels}) (increase({scope.select('pg_stat_statements_seconds_total')}[{WINDOW}]))"
    return f"{seconds}\n/ on ({labels}) ({calls} >= {MINIMUM_CALLS}) > {scope.thresholds.statement_seconds:g}"


def _lock_waits(scope: Scope) -> str:
    waiting = scope.select("pg_stat_activity_count", 'wait_event_type="Lock"')
    return f"sum by (stack, datname) ({waiting}) > 0"


def _long_transaction(scope: Scope) -> str:
    age = scope.select(
        "pg_stat_activity_max_tx_duration",
        'backend_type!="autovacuum worker"',
        'application_name!~"observatory:dump|pg_dump"',  # a dump may take hours, in one transaction
    )
    return f"max by (stack, instance) ({age}) > {scope.thresholds.transaction_seconds}"


_STATEMENT = '{{stack="test",job="postgres",instance="one",datname="o",user="{}",queryid="{}"}}'
_CALLS = "pg_stat_statements_calls_total" + _STATEMENT
_SECONDS = "pg_stat_statements_seconds_total" + _STATEMENT
_BLOCKING = (
    "SELECT pid, usename, pg_blocking_pids(pid) AS waits_for, now() - query_start AS waits, left(query, 60) "
    "FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
)
_OLDEST = (
    "SELECT pid, usename, application_name, state, now() - xact_start AS age, left(query, 60) FROM pg_stat_activity "
    "WHERE xact_start IS NOT NULL ORDER BY xact_start LIMIT 10"
)


def _slow(seconds: float, calls: float) -> dict[str, str]:
    """Return the series of a statement, by the seconds and calls of each minute, and of others that are fast."""
    return {
        _SECONDS.format("a", "1"): f"0+{seconds:g}x30",
        _CALLS.format("a", "1"): f"0+{calls:g}x30",
        _SECONDS.format("a", "2"): "0+2x30",
        _CALLS.format("a", "2"): "0+100x30",
        _SECONDS.format("b", "1"): "0+2x30",
        _CALLS.format("b", "1"): "0+100x30",
        _SECONDS.format("a", "1").replace('"o"', '"p"'): "0+2x30",
        _CALLS.format("a", "1").replace('"o"', '"p"'): "0+100x30",
    }


_SLOW_LABELS = {"datname": "o", "user": "a", "queryid": "1"}

SLOW_STATEMENTS = Alert(
    name="StorageSlowStatements",
    expression=_slow_statements,
    pending="1m",
    severity="warning",
    component="database",
    category="query-performance",
    summary="A statement that is repeated takes long",
    description="Query {{ $labels.queryid }} of {{ $labels.user }} takes {{ $value | humanizeDuration }} on average.",
    runbook=Runbook(
        meaning=(
            "A statement ran at least three times in 5 minutes, and took longer than `alerts.statement_seconds` on "
            "average."
        ),
        impact="Its requests are slow, and it uses connections, CPU and I/O that others need.",
        diagnosis=(
            Step(
                "Read the text of the statement.",
                (query("SELECT calls, mean_exec_time, query FROM pg_stat_statements WHERE queryid = {queryid}"),),
            ),
            Step("`EXPLAIN (ANALYZE, BUFFERS)` shows a sequential scan where an index is missing."),
        ),
        remedy=(
            Step(
                "End the statements that run now.",
                (
                    query(
                        "SELECT pid, pg_cancel_backend(pid) FROM pg_stat_activity WHERE query_id = {queryid} "
                        "AND pid <> pg_backend_pid() AND <ordinary>"
                    ),
                ),
            ),
            Step(
                "If an index is missing: add it in a migration with `CREATE INDEX CONCURRENTLY`, on a "
                "hypertable with `timescaledb.transaction_per_chunk`."
            ),
            Step("If the plan is wrong after a bulk load: renew the statistics.", (query("ANALYZE"),)),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="Repeat `SELECT pg_sleep(3)`.",
    scenarios=(
        Scenario(
            name="the mean duration is beyond the threshold, then at it",
            interval="1m",
            series={
                **_slow(0, 0),
                _SECONDS.format("a", "1"): "0x6 8.2+8.2x20 172+8x20",
                _CALLS.format("a", "1"): "0x6 4+4x20 84+4x20",
            },
            quiet=("7m", "45m"),
            fires=(Firing(at="20m", labels=_SLOW_LABELS, description="Query 1 of a takes 2.05s on average."),),
        ),
        Scenario(
            name="the alert waits for a minute, and ends when the statement is faster",
            interval="15s",
            series={
                **_slow(0, 0),
                _SECONDS.format("a", "1"): "0x20 0+10x40 400x40",
                _CALLS.format("a", "1"): "0x20 0+4x40 160+400x40",
            },
            quiet=("6m15s", "16m"),
            fires=tuple(
                Firing(at=at, labels=_SLOW_LABELS, description="Query 1 of a takes 2.5s on average.")
                for at in ("6m30s", "10m30s")
            ),
        ),
        Scenario(
            name="two calls in five minutes are too few",
            interval="1m",
            series={**_slow(0, 0), _SECONDS.format("a", "1"): "0+3x40", _CALLS.format("a", "1"): "0+0.58x40"},
            quiet=("20m",),
        ),
        Scenario(
            name="three calls in five minutes are enough",
            interval="1m",
            series={**_slow(0, 0), _SECONDS.format("a", "1"): "0x19 15x20", _CALLS.format("a", "1"): "0x19 3x20"},
            quiet=("20m",),
            fires=(Firing(at="22m", labels=_SLOW_LABELS, description="Query 1 of a takes 5s on average."),),
        ),
    ),
)

_WAITING = 'pg_stat_activity_count{{stack="test",instance="one",datname="{}",state="active",wait_event_type="{}"}}'

LOCK_WAITS = Alert(
    name="StorageLockWaits",
    expression=_lock_waits,
    pending="30s",
    severity="warning",
    component="database",
    category="query-performance",
    summary="Sessions wait for locks",
    description="{{ $value }} sessions of {{ $labels.datname }} wait for a lock.",
    runbook=Runbook(
        meaning="For 30 s there was always a session that waits for a lock of another one.",
        impact=(
            "The waiting requests are slow or fail after their timeout. All requests for the table queue behind a "
            "waiting `ALTER TABLE`."
        ),
        diagnosis=(Step("List the waiting sessions, and those that they wait for.", (query(_BLOCKING),)),),
        remedy=(
            Step(
                "End the sessions that block others and do not wait themselves, except those of dumps and of "
                "deployments. Their work is rolled back.",
                (
                    query(
                        # All are found before the first one ends, and those that waited for it wait no more.
                        "SELECT pid, pg_terminate_backend(pid) FROM unnest(ARRAY(SELECT pid FROM "
                        "pg_stat_activity WHERE pid IN (SELECT unnest(pg_blocking_pids(pid)) FROM "
                        "pg_stat_activity) AND cardinality(pg_blocking_pids(pid)) = 0 AND <ordinary>)) AS pid"
                    ),
                ),
            ),
            Step(
                "If a migration waits or blocks: it retries by itself, with a limit. `observatory deploy database "
                "--info` shows whether it was applied."
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="LOCK TABLE in one session, SELECT in another.",
    scenarios=(
        crossing(
            _WAITING.format("o", "Lock"),
            at=0,
            beyond=1,
            pending=30,
            labels={"datname": "o"},
            description="1 sessions of o wait for a lock.",
            others={_WAITING.format("o", "Client"): "5x200", _WAITING.format("p", "Lock"): "0x200"},
        ),
    ),
)

_AGE = (
    'pg_stat_activity_max_tx_duration{{stack="test",instance="{}",application_name="{}",'
    'backend_type="{} backend",state="active"}}'
)
_CLIENT = _AGE.format("one", "psql", "client")

LONG_TRANSACTION = Alert(
    name="StorageLongTransaction",
    expression=_long_transaction,
    pending="10s",
    severity="warning",
    component="database",
    category="query-performance",
    summary="A transaction runs for long",
    description="The oldest transaction on {{ $labels.instance }} is {{ $value | humanizeDuration }} old.",
    runbook=Runbook(
        meaning="A transaction is older than `alerts.transaction_seconds`. Dumps and autovacuum do not count.",
        impact=(
            "Dead rows that it might see are not removed, so tables and indexes grow. A migration that needs its "
            "locks waits."
        ),
        diagnosis=(Step("List the oldest transactions.", (query(_OLDEST),)),),
        remedy=(
            Step(
                "End the oldest one, unless it is of a dump or of a deployment. Its work is rolled back.",
                (
                    query(
                        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = "
                        "'client backend' AND pid <> pg_backend_pid() AND xact_start = (SELECT min(xact_start) "
                        "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> "
                        "pg_backend_pid()) AND <ordinary>"
                    ),
                ),
            ),
        ),
        escalation=escalation.DATABASE,
    ),
    fault="SELECT that takes longer than the threshold.",
    scenarios=(
        crossing(
            _CLIENT,
            at=600,
            beyond=625,
            pending=10,
            labels={"instance": "one"},
            description="The oldest transaction on one is 10m 25s old.",
            others={
                _AGE.format("one", "observatory:dump", "client"): "7200x200",
                _AGE.format("one", "pg_dump", "client"): "7200x200",
                _AGE.format("one", "", "autovacuum").replace(" backend", " worker"): "7200x200",
                _AGE.format("two", "psql", "client"): "0x200",
            },
        ),
    ),
)

QUERY_PERFORMANCE = (SLOW_STATEMENTS, LOCK_WAITS, LONG_TRANSACTION)
