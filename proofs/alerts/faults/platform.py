"""Faults of the platform itself: its monitoring, its jobs, its supervisor and its certificates."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import yaml

from proofs.alerts.faults.means import kill_host_processes, stopped
from proofs.alerts.monitored import Monitored
from proofs.alerts.round import Fault

RENEWAL = "AUTHORITY_DAYS, CERTIFICATE_DAYS, RENEW_DAYS = 3650, {days}, {renew}"
AMBIGUOUS = {"name": "ambiguous", "rules": [{"record": "ambiguous", "expr": "up * on (stack) up"}]}


@contextlib.contextmanager
def host_processes_killed(stack: Monitored) -> Iterator[None]:
    """Kill the watcher, the guard and the scheduler at once."""
    kill_host_processes(stack)
    yield


@contextlib.contextmanager
def rollback_receiver_gone(stack: Monitored) -> Iterator[None]:
    """Kill what receives alerts for rollbacks, and stop an instance, whose alert goes there."""
    kill_host_processes(stack)
    with stopped("storage-green-1")(stack):
        yield


def rules_replaced(change: Callable[[str], str]) -> Callable[[Monitored], contextlib.AbstractContextManager[None]]:
    """Return a fault that changes the rules that Prometheus reads, and lets it read them."""

    @contextlib.contextmanager
    def fault(stack: Monitored) -> Iterator[None]:
        rules = "/srv/etc/prometheus/rules.yaml"
        stack.sandbox.write_file(rules, change(stack.sandbox.host_path(rules).read_text()))
        os.kill(stack.pid("prometheus"), signal.SIGHUP)
        yield

    return fault


def _with_ambiguous_rule(rules: str) -> str:
    document = yaml.safe_load(rules)
    return str(yaml.safe_dump({"groups": [*document["groups"], AMBIGUOUS]}))


@contextlib.contextmanager
def job_failed(stack: Monitored) -> Iterator[None]:
    """Let a backup fail: the keys of the repositories are away, and then back."""
    keys = sorted((stack.checkout.home / "etc/pgbackrest").rglob("*cipher*"))
    kept = [(file, file.with_name(f"{file.name}.away")) for file in keys]
    for file, away in kept:
        file.rename(away)
    try:
        stack.checkout.exit_code("scheduler", "run", "backup-differential")
    finally:
        for file, away in kept:
            away.rename(file)
    yield


def certificates_of(days: int) -> Callable[[Monitored], contextlib.AbstractContextManager[None]]:
    """Return a fault that gives every server a certificate that is valid for so many days."""

    @contextlib.contextmanager
    def fault(stack: Monitored) -> Iterator[None]:
        module = stack.checkout.root / "observatory/security/certificates.py"
        text = module.read_text()
        module.write_text(text.replace(RENEWAL.format(days=90, renew=30), RENEWAL.format(days=days, renew=365)))
        try:
            stack.checkout.run("certificates", "renew")
        finally:
            module.write_text(text)
        yield

    return fault


PLATFORM = (
    Fault(
        alert="StorageSupervisorDown",
        what="watcher, guard and scheduler are killed at once",
        inject=host_processes_killed,
        labels={"state": "is not watched"},
    ),
    Fault(
        alert="ObservatorySchedulerDown",
        what="watcher, guard and scheduler are killed at once",
        inject=host_processes_killed,
    ),
    Fault(
        alert="ObservatoryJobFailed",
        what="a backup runs while the keys of the repositories are away",
        inject=job_failed,
        labels={"name": "backup-differential"},
    ),
    Fault(
        alert="StorageNotificationsFailing",
        what="the receiver of rollbacks is killed, and an instance is stopped",
        inject=rollback_receiver_gone,
    ),
    Fault(
        alert="StorageRuleEvaluationFailing",
        what="a rule matches many series to many",
        inject=rules_replaced(_with_ambiguous_rule),
    ),
    Fault(
        alert="StorageConfigReloadFailed",
        what="the file of the rules is not YAML",
        inject=rules_replaced(lambda _: "groups: ["),
        labels={"job": "prometheus"},
    ),
    Fault(
        alert="StorageWarningUnattended",
        what="an instance is stopped, and its warning is not attended to",
        inject=stopped("storage-green-1"),
        labels={"escalated": "StorageInstanceDown"},
        remedy_of="StorageInstanceDown",
    ),
    Fault(
        alert="StorageCertificateExpiring",
        what="every certificate is valid for 20 days",
        inject=certificates_of(20),
    ),
    Fault(
        alert="StorageCertificateNearlyExpired",
        what="every certificate is valid for 6 days",
        inject=certificates_of(6),
    ),
)
