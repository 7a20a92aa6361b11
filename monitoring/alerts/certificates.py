"""Alerts on certificates that expire soon.

The scheduler publishes the expiry of each certificate file, and renews certificates in their last 30 days. An alert
therefore means that renewals fail.
"""

from __future__ import annotations

from monitoring.alerts import escalation
from monitoring.model import Alert, Firing, Runbook, Scenario, Scope, Severity, Step

BRIDGE = "15m"  # how long the last value of a series is used when scrapes fail
WARNING_DAYS, CRITICAL_DAYS, AUTHORITY_DAYS = 21, 7, 180
DAY_S = 86_400
METRIC = "observatory_certificate_expiry_timestamp_seconds"
_SERIES = f'{METRIC}{{{{stack="test",job="node",name="{{name}}",kind="{{kind}}"}}}}'


def _remaining(scope: Scope, kind: str) -> str:
    series = scope.select(METRIC, f'kind="{kind}"')
    return f"min by (stack, name) (last_over_time({series}[{BRIDGE}])) - time()"


def _expiring(scope: Scope) -> str:
    server = f"{_remaining(scope, 'server')} < {WARNING_DAYS * DAY_S}"
    return f"{server}\nor {_remaining(scope, 'authority')} < {AUTHORITY_DAYS * DAY_S}"


def _nearly_expired(scope: Scope) -> str:
    return f"{_remaining(scope, 'server')} < {CRITICAL_DAYS * DAY_S}"


DIAGNOSIS = (
    Step("`observatory certificates list` shows when each certificate expires."),
    Step(
        "`observatory scheduler list` shows the last renewal, `log/job-certificates.log` in the stack's home "
        "its output."
    ),
)
REMEDY = (
    Step(
        "Renew the certificates in their last 30 days. No connection is closed. If the command reports other changes, "
        "run `observatory up`, which makes them and renews the certificates.",
        ("observatory certificates renew",),
    ),
    Step(
        "The authority (`ca`) is valid for ten years and cannot be renewed, because clients trust its certificate. "
        "It is reported 180 days before it expires: plan a new stack."
    ),
)
IMPACT = "When a certificate has expired, clients refuse the connection: writes, reads and monitoring fail at once."


def _series(name: str, kind: str) -> str:
    return _SERIES.format(name=name, kind=kind)


def _alert(name: str, *, severity: Severity, days: int, scenarios: tuple[Scenario, ...]) -> Alert:
    return Alert(
        name=name,
        expression=_expiring if days == WARNING_DAYS else _nearly_expired,
        pending="1m",
        severity=severity,
        component="service",
        category="platform",
        summary="A certificate expires soon" if severity == "warning" else "A certificate expires in a few days",
        description="{{ $labels.name }} expires in {{ $value | humanizeDuration }}.",
        runbook=Runbook(
            meaning=(
                f"A certificate of the stack expires in less than {days} days. Certificates are renewed 30 days before "
                "they expire, so renewals fail."
            ),
            impact=IMPACT,
            diagnosis=DIAGNOSIS,
            remedy=REMEDY,
            escalation=escalation.SERVICE,
        ),
        fault="Stop the scheduler and let a certificate of 21 days grow old.",
        scenarios=scenarios,
    )


def _at(days: int, seconds: int = 0) -> str:
    """Return the value of a series that expires after so many days and seconds, for ten minutes."""
    return f"{days * DAY_S + seconds}+0x120"


def _threshold(kind: str, days: int) -> tuple[Scenario, ...]:
    """Return scenarios of a certificate that is renewed, and of one whose expiry is not scraped for a while."""

    def fires(at: str, left: str) -> Firing:
        return Firing(at=at, labels={"name": "one"}, description=f"one expires in {left}.")

    limit = days * DAY_S
    return (
        Scenario(
            name=f"a certificate ({kind}) crosses the threshold and is renewed",
            series={_series("one", kind): f"{limit + 60}x39 {limit * 20}x40", _series("other", "other"): "0x90"},
            quiet=("120s", "200s"),
            fires=(fires("125s", f"{days - 1}d 23h 58m 55s"), fires("195s", f"{days - 1}d 23h 57m 45s")),
        ),
        Scenario(
            name=f"scrapes fail for fifteen minutes ({kind})",
            interval="1m",
            series={_series("one", kind): f"{DAY_S}x4 stale _x60"},
            quiet=("21m",),
            fires=(fires("18m", "23h 42m 0s"),),
        ),
    )


EXPIRING = _alert(
    "StorageCertificateExpiring",
    severity="warning",
    days=WARNING_DAYS,
    scenarios=(
        *_threshold("server", WARNING_DAYS),
        *_threshold("authority", AUTHORITY_DAYS),
        Scenario(
            name="a certificate is below 21 days, others are above",
            series={
                _series("balancer", "server"): _at(WARNING_DAYS, 60),
                _series("etcd", "server"): _at(30),
                _series("ca", "authority"): _at(AUTHORITY_DAYS + 1),
            },
            quiet=("1m",),
            fires=(Firing(at="3m", labels={"name": "balancer"}, description="balancer expires in 20d 23h 58m 0s."),),
        ),
        Scenario(
            name="the authority is below 180 days",
            series={_series("ca", "authority"): _at(AUTHORITY_DAYS, 60)},
            quiet=("1m",),
            fires=(Firing(at="3m", labels={"name": "ca"}, description="ca expires in 179d 23h 58m 0s."),),
        ),
        Scenario(
            name="certificates and authority are valid for longer",
            series={_series("balancer", "server"): _at(60), _series("ca", "authority"): _at(3000)},
            quiet=("5m",),
        ),
    ),
)

NEARLY_EXPIRED = _alert(
    "StorageCertificateNearlyExpired",
    severity="critical",
    days=CRITICAL_DAYS,
    scenarios=(
        *_threshold("server", CRITICAL_DAYS),
        Scenario(
            name="a certificate is below seven days",
            series={_series("postgres", "server"): _at(CRITICAL_DAYS, 60), _series("etcd", "server"): _at(8)},
            quiet=("1m",),
            fires=(Firing(at="3m", labels={"name": "postgres"}, description="postgres expires in 6d 23h 58m 0s."),),
        ),
    ),
)

CERTIFICATES = (EXPIRING, NEARLY_EXPIRED)
