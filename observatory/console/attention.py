"""What needs an operator's attention on a stack, each with the command that shows more or repairs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from observatory import operations
from observatory.console import text

Level = Literal["critical", "warning", "ok"]
UNSEVERE = "none"  # of alerts that always fire, such as the Watchdog


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing: how bad it is, what it is, and a command, or the page that has more."""

    level: Level
    text: str
    command: str = ""
    page: str = ""


def notices(
    status: operations.Status | None,
    rules: Sequence[operations.AlertRule] | None,
    deliveries: Sequence[operations.DeliveryReport],
    problems: Sequence[str],
) -> list[Notice]:
    """Return what needs attention, the worst first; `rules` is None, and `problems` say why, where a reading failed."""
    found = [Notice(level="warning", text=problem) for problem in problems]
    found += [*_of_alerts(rules or ()), *_of_muted_alerts(rules or ())]
    if status:
        found += [*_of_daemons(status), *_of_jobs(status), *_of_secrets(status), *_of_data(status)]
        found += [*_of_monitoring(status, rules), *_of_versions(status), *_of_delivery(status, deliveries)]
    return sorted(found, key=lambda notice: notice.level != "critical")


def firing(rules: Sequence[operations.AlertRule]) -> list[operations.AlertRule]:
    """Return the firing rules that concern an operator and are not muted."""
    return [
        rule
        for rule in rules
        if rule.state == "firing" and rule.severity != UNSEVERE and not all(each.muted for each in rule.alerts)
    ]


def _of_alerts(rules: Sequence[operations.AlertRule]) -> Iterator[Notice]:
    for rule in firing(rules):
        level: Level = "critical" if rule.severity == "critical" else "warning"
        yield Notice(level=level, text=f"{rule.name}: {rule.summary}", page=f"runbooks/{rule.name}")


def _of_muted_alerts(rules: Sequence[operations.AlertRule]) -> Iterator[Notice]:
    """Yield critical alerts of which no receiver gets a notification: an outage lasts, whatever is muted."""
    shown = {rule.name for rule in firing(rules)}
    for rule in rules:
        if rule.state == "firing" and rule.severity == "critical" and rule.name not in shown:
            yield Notice(level="warning", text=f"{rule.name}, muted: {rule.summary}", page="alerts")


def _of_monitoring(status: operations.Status, rules: Sequence[operations.AlertRule] | None) -> Iterator[Notice]:
    """Yield why a problem may send no alert."""
    if status.monitoring_down:
        silent = text.duration(status.heartbeat_age or 0.0)
        what = f"Monitoring is down: no heartbeat for {silent}, so alerts are not delivered"
        yield Notice(level="critical", text=what, command="observatory up")
    if status.daemons and rules is not None and not rules:
        what = "Prometheus has no alerting rules: no alert fires"
        yield Notice(level="critical", text=what, command="observatory up")
    for rule in rules or ():
        if rule.problem:
            what = f"The rule {rule.name} cannot be evaluated, so that it does not fire: {rule.problem}"
            yield Notice(level="critical", text=what, page="alerts")


def _of_daemons(status: operations.Status) -> Iterator[Notice]:
    for daemon in status.daemons:
        if not daemon.as_declared:
            command = f"observatory logs {daemon.name}"
            yield Notice(level="critical", text=f"{daemon.name} is {daemon.health}", command=command)


def _of_versions(status: operations.Status) -> Iterator[Notice]:
    """Yield instances that run another version than the rollout document has."""
    for each in status.wrong_versions:
        what = f"{each.name} runs {each.running_version}, and {each.version} is deployed"
        yield Notice(level="critical", text=what, command="observatory up")


def _of_delivery(status: operations.Status, deliveries: Sequence[operations.DeliveryReport]) -> Iterator[Notice]:
    """Yield why a deployment waits for an operator."""
    found = status.rollout.deployment if status.rollout else None
    if deliveries and (last := deliveries[-1]).outcome == "escalated":
        settled = found is not None and found.id == last.id and found.ended and status.healthy
        what = f"The deployment of {last.version} requires an operator: {last.reason}"
        yield Notice(level="warning" if settled else "critical", text=what, page=f"deployments/{last.id}")
    if found and found.status == "paused":
        what = f"The deployment of {found.version} is paused{f': {found.reason}' if found.reason else ''}"
        yield Notice(level="warning", text=what, page=f"deployments/{found.id}", command="observatory rollout resume")


def _of_jobs(status: operations.Status) -> Iterator[Notice]:
    for job in status.jobs:
        if job.record.failing:
            yield Notice(level="warning", text=f"The job {job.job.name} failed", page="jobs")


def _of_secrets(status: operations.Status) -> Iterator[Notice]:
    for name in status.missing_certificates:
        yield Notice(level="critical", text=f"The certificate {name} is missing", command="observatory up")
    for certificate in status.certificates:
        if certificate.expiring:
            what = f"The certificate {certificate.name} {certificate.left}"
            yield Notice(level="warning", text=what, command="observatory certificates renew")
    for password in status.passwords:
        if password.unfinished or password.overdue:
            what = "has a rotation that is not finished" if password.unfinished else f"is {password.age_days} days old"
            text_ = f"The password of {password.role} {what}"
            yield Notice(level="warning", text=text_, command="observatory rotate-passwords")


def _of_data(status: operations.Status) -> Iterator[Notice]:
    if found := status.database_rollback:
        what = f"The {found.kind} of the database {found.id} is not finished; its next step is to {found.phase}"
        yield Notice(level="warning", text=what, command="observatory up")
    waiting = status.waiting_wal
    if waiting.seconds_left is not None:
        what = (
            f"{waiting.segments} segments of WAL ({text.size(waiting.bytes)}) wait for a backup repository; the disk "
            f"is full in {text.duration(waiting.seconds_left)}"
        )
        yield Notice(level="critical", text=what, command="observatory backup verify")
