"""A running `local` stack whose monitoring is proven: what Prometheus measured, and what arrived at the receiver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psycopg

from monitoring import ALERTS, Alert, Scope
from observatory.database import connect
from observatory.database.connection import with_database
from observatory.nodes.prometheus import INTERVAL
from observatory.operations.demonstration import spans
from observatory.runtime import Sandbox
from proofs.alerts.scaled import seconds
from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.waiting import until

SCOPE = Scope(stack="local", runbooks="")
STEP_S = 1.0  # of the search for the moment when an expression became true or false
POLL_S = 0.5
COMMAND_S = 600.0
INTERVAL_S = seconds(INTERVAL)
REGISTERED: Mapping[str, Alert] = {alert.name: alert for alert in ALERTS}


@dataclass(frozen=True, kw_only=True)
class Received:
    """One alert of a notification, as the receiver stored it."""

    at: float
    receiver: str
    status: str
    labels: dict[str, str]


@dataclass
class Monitored:
    """A stack that is up.

    Attributes:
        checkout: of the stack.
        sandbox: of its daemons.
    """

    checkout: Checkout
    sandbox: Sandbox = field(init=False)

    def __post_init__(self) -> None:
        self.sandbox = Sandbox(self.checkout.home, Path(self.checkout.environment["OBSERVATORY_ROOTFS"]))

    @cached_property
    def ports(self) -> dict[str, int]:
        """The ports of the stack."""
        return self.checkout.ports()

    @cached_property
    def admin(self) -> str:
        """The address of the stack's database for the administrator."""
        return with_database(self.checkout.output("admin_database_url"), "observatory")

    @cached_property
    def logins(self) -> dict[str, str]:
        """The address of the database for each login."""
        return dict(self.checkout.json("outputs", "--show-secrets")["database_urls"])

    @property
    def user(self) -> str:
        """The address of PostgreSQL itself, beside the pooler, for a login that is no superuser."""
        return self.logins["admin_a"]

    def get(self, part: str, path: str, **parameters: Any) -> Any:
        """Return the document at a path of a guarded daemon."""
        url = f"https://127.0.0.1:{self.ports[part]}{path}"
        answer = httpx.get(url, params=parameters, verify=self.checkout.monitoring(), timeout=30)
        return answer.raise_for_status().json()

    def query(self, expression: str, at: float | None = None) -> list[dict[str, str]]:
        """Return the labels of each series of an expression."""
        asked = {"query": expression} | ({"time": at} if at else {})
        return [each["metric"] for each in self.get("prometheus", "/api/v1/query", **asked)["data"]["result"]]

    def value(self, expression: str) -> float:
        """Return the value of an expression that has one series."""
        [sample] = self.get("prometheus", "/api/v1/query", query=expression)["data"]["result"]
        return float(sample["value"][1])

    def is_true(self, alert: str) -> bool:
        """Return whether the alert's expression is true now."""
        return bool(self.query(REGISTERED[alert].expression(SCOPE)))

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        return {each["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def times_true(self, alert: str, labels: Mapping[str, str], since: float) -> list[float]:
        """Return the seconds since a time at which the alert's expression was true for a series with these labels."""
        asked = {"query": REGISTERED[alert].expression(SCOPE), "start": since, "end": time.time(), "step": STEP_S}
        series = self.get("prometheus", "/api/v1/query_range", **asked)["data"]["result"]
        found = {
            float(at)
            for one in series
            if all(labels.get(name, value) == value for name, value in one["metric"].items())
            for at, _ in one["values"]
        }
        return sorted(found)

    def received(self, alert: str, *, since: float) -> list[Received]:
        """Return the notifications of an alert since a time, oldest first."""
        return [
            Received(at=at, receiver=record["receiver"], status=each["status"], labels=each["labels"])
            for record in self.get("alert_receiver", "/alerts")
            if (at := datetime.fromisoformat(record["received_at"]).timestamp()) >= since
            for each in record["notification"].get("alerts", ())  # none in a notice of a deployment or of the watcher
            if each["labels"]["alertname"] == alert
        ]

    def wait_for(self, condition: Callable[[], object], what: str, *, timeout_s: float) -> None:
        """Wait until a condition holds, whatever fails to answer meanwhile."""

        def answered() -> object:
            try:
                return condition()
            except (httpx.HTTPError, psycopg.Error):
                return None

        until(answered, what, timeout_s=timeout_s, pause_s=POLL_S)

    def sql(self, *statements: str) -> None:
        """Run statements as the administrator."""
        with connect(self.admin, purpose="proof") as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def superuser(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as PostgreSQL's superuser, on its socket; return the output."""
        console = ["psql", "-h", "/srv/run/postgresql", "-p", str(self.ports["postgres"]), "-U", "postgres", "-XAtqc"]
        return self.sandbox.run([*console, statement, database]).stdout.strip()

    def shell(self, command: str) -> str:
        """Run a command of a runbook as an engineer would, in the checkout; return what it said.

        Raises:
            RuntimeError: it failed.
        """
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.checkout.root,
            env={**os.environ, **self.checkout.environment, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UP_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
        return done.stdout

    @contextmanager
    def service(self) -> Iterator[httpx.Client]:
        """Yield a client of the service."""
        headers = {"Authorization": f"Bearer {self.checkout.output('api_key')}"}
        url, trusted = self.checkout.output("service_url"), self.checkout.trusted()
        with httpx.Client(base_url=url, headers=headers, verify=trusted, timeout=30) as client:
            yield client

    def pid(self, daemon: str) -> int:
        """Return the process of a daemon or of a process of the host."""
        return int({row["name"]: row["pid"] for row in self.checkout.json("status")["daemons"]}[daemon])

    def write_trace(self, client: httpx.Client) -> int:
        """Write one trace; return the status code, 0 without a response."""
        items = list(spans(1, now=datetime.now(UTC), seed=time.time_ns()))
        try:
            return client.post("/v1/traces", json={"items": items}).status_code
        except httpx.HTTPError:
            return 0
