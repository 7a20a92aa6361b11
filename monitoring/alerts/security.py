"""Alerts on the access to the database: failed logins, and sessions without TLS."""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.alerts.commands import logs, query
from monitoring.alerts.scenarios import BRIDGE, gauge
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Step

WINDOW = "5m"


def _auth_failures(scope: Scope) -> str:
    failures = scope.select("storage_pg_auth_failures_total")
    return f"sum by (stack, server) (increase({failures}[{WINDOW}])) > {scope.thresholds.auth_failures}"


def _plaintext(scope: Scope) -> str:
    return f"max by (stack) (last_over_time({scope.select('storage_pg_plaintext_sessions')}[{BRIDGE}])) > 0"


_FAILURES = 'storage_pg_auth_failures_total{{stack="test",job="collector",server="{}",sqlstate="{}"}}'


def _failures(values: str) -> dict[str, str]:
    return {
        _FAILURES.format("postgresql", "28P01"): values,
        _FAILURES.format("postgresql", "28000"): "0x200",
        _FAILURES.format("pgbouncer", "28P01"): "0x200",
    }


def _failed(at: str, times: str) -> Firing:
    return Firing(at=at, labels={"server": "postgresql"}, description=f"postgresql rejected {times} logins in 5 min.")


AUTH_FAILURES = Alert(
    name="StorageAuthFailures",
    expression=_auth_failures,
    severity="warning",
    component="database",
    category="security",
    summary="Many logins are rejected",
    description="{{ $labels.server }} rejected {{ $value | humanize }} logins in 5 min.",
    runbook=Runbook(
        meaning=(
            "More than `alerts.auth_failures` logins failed in 5 minutes: a wrong password (SQLSTATE 28P01), or a "
            "login that pg_hba.conf does not allow (28000)."
        ),
        impact="None if a client has an old password. It may also be an attempt to guess one.",
        diagnosis=(
            Step("Read which logins failed, and from where.", (logs("patroni"), logs("pgbouncer"))),
            Step("Check whether a rotation of passwords is unfinished.", ("observatory status",)),
        ),
        remedy=(
            Step("If a client of the stack has an old password: give it the present one."),
            Step(
                "If the source is unknown: block it in the firewall, and rotate the passwords.",
                ("observatory rotate-passwords",),
            ),
            Step("The alert ends five minutes after the last attempts."),
        ),
        escalation=escalation.SECURITY,
    ),
    fault="Log in with wrong passwords.",
    scenarios=(
        Scenario(
            name="the rate is at the threshold, then beyond it, then at it",
            interval="15s",
            series=_failures("0+0.5x40 20.52+0.52x40 41.3+0.5x60"),
            quiet=("9m", "26m"),
            fires=(_failed("19m", "10.4"),),
        ),
        Scenario(
            name="a burst of failures",
            interval="15s",
            series=_failures("0x30 20x60"),
            quiet=("7m15s", "12m45s"),
            fires=(_failed("8m", "20"), _failed("11m", "20")),
        ),
        Scenario(
            name="both servers reject some logins",
            interval="15s",
            series={**_failures("0+0.3x60"), _FAILURES.format("pgbouncer", "28P01"): "0+0.3x60"},
            quiet=("10m",),
        ),
    ),
)

_SESSIONS = 'storage_pg_plaintext_sessions{stack="test",job="collector"}'

PLAINTEXT_SESSIONS = Alert(
    name="StoragePlaintextSessions",
    expression=_plaintext,
    pending="15s",
    severity="warning",
    component="database",
    category="security",
    summary="Sessions over the network are not encrypted",
    description="{{ $value }} sessions over TCP do not use TLS.",
    runbook=Runbook(
        meaning=(
            "pg_hba.conf accepts a connection over TCP without TLS. The stack's own file has `hostssl` lines only, "
            "so another line was added."
        ),
        impact="Passwords are protected by SCRAM. Statements and rows cross the network in clear text.",
        diagnosis=(
            Step(
                "List the sessions and the lines that accept them.",
                (
                    query(
                        "SELECT a.pid, a.usename, a.client_addr FROM pg_stat_activity a JOIN pg_stat_ssl s "
                        "USING (pid) WHERE a.client_addr IS NOT NULL AND NOT s.ssl"
                    ),
                    "observatory preview",
                ),
            ),
        ),
        remedy=(
            Step("Restore pg_hba.conf.", ("observatory up",)),
            Step(
                "End the sessions. Clients connect again with TLS.",
                (
                    query(
                        "SELECT a.pid, pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_stat_ssl s "
                        "USING (pid) WHERE a.client_addr IS NOT NULL AND NOT s.ssl"
                    ),
                ),
            ),
        ),
        escalation=escalation.SECURITY,
    ),
    fault="Add a `host` line to pg_hba.conf, and connect with sslmode=disable.",
    scenarios=gauge(
        _SESSIONS, at=0, beyond=1, pending=15, description="1 sessions over TCP do not use TLS.", labels={}
    ),
)

SECURITY = (AUTH_FAILURES, PLAINTEXT_SESSIONS)
