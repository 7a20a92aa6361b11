"""No false pages: healthy load on a stack, with a backup, a migration and a deployment meanwhile."""

from __future__ import annotations

import time
from collections import Counter

from monitoring import ALERTS
from proofs.alerts.monitored import Monitored
from proofs.judged import EMBEDDED, OLD, Judged, a_stack
from proofs.record import Outcome
from proofs.users import Habits, Users
from proofs.workflow import add_migration

PROMISE = (
    "In 30 minutes of healthy load, with a backup, a migration and a blue-green deployment meanwhile, no alert is "
    "delivered to a receiver but Watchdog's heartbeat."
)
MINUTES = 30
BAKE_S = 30
RATE = 20.0  # requests a second
POLL_S = 10.0
QUIET = {alert.name for alert in ALERTS if alert.severity == "none"}  # they always fire, or only hold others back


def prove(rounds: int, share: int) -> Outcome:
    """Send load to one stack for `rounds` times 30 minutes; `share` shortens each to one of so many parts."""
    outcome, begun, fired = Outcome(promise=PROMISE), time.monotonic(), Counter[str]()
    requests = hurt = 0
    with a_stack() as stack:
        for number in range(rounds):
            users = _live(stack, number, MINUTES * 60 / share, fired)
            requests += len(users.responses)
            hurt += sum(bool(each.wrong) for each in users.responses)
        delivered = _delivered(stack)
    outcome.failures = [f"{name} was delivered {times} times" for name, times in sorted(delivered.items())]
    outcome.failed = len(outcome.failures)
    outcome.passed = rounds if not outcome.failed else 0
    outcome.counts = {
        "minutes": rounds * MINUTES / share,
        "requests": requests,
        "requests not answered as they should be": hurt,
        "alerts that fired, by reading every 10 s": dict(fired),
        "alerts delivered": dict(delivered),
    }
    outcome.seconds = time.monotonic() - begun
    return outcome


def _live(stack: Judged, number: int, duration_s: float, fired: Counter[str]) -> Users:
    """Send load, and back up, migrate and deploy; return the users, and count the alerts that fire."""
    checkout, monitored = stack.checkout, Monitored(stack.checkout)
    url, key, ca_file = (checkout.output(name) for name in ("service_url", "api_key", "ca_file"))
    version = OLD if number % 2 else stack.version_of("good")
    until = time.monotonic() + duration_s
    with Users(url=url, api_key=key, ca_file=ca_file, habits=Habits(rate=RATE)) as users:
        checkout.run("backup", "create")
        add_migration(checkout.root, number)
        checkout.run("deploy", "database")
        deployed = ("--version", version, "--strategy", "blue-green", "--bake", str(BAKE_S), *EMBEDDED)
        checkout.run("deploy", "application", *deployed)
        while time.monotonic() < until:
            fired.update(monitored.firing() - QUIET)
            time.sleep(POLL_S)
    return users


def _delivered(stack: Judged) -> Counter[str]:
    """Return how often each alert arrived at a receiver, Watchdog aside; notices of deployments are no alerts."""
    records = Monitored(stack.checkout).get("alert_receiver", "/alerts")
    alerts = (alert for record in records for alert in record["notification"].get("alerts", ()))
    names = (alert["labels"]["alertname"] for alert in alerts if alert["status"] == "firing")
    return Counter(name for name in names if name not in QUIET)
