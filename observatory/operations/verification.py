"""Verifying a stack after something was changed: each part is asked as those who need it ask.

Owns which checks there are and what each verdict means. Not being able to look is `unknown`, and never a pass.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from observatory.delivery.environment import HostsError
from observatory.documents.rollout import RolloutDocument
from observatory.errors import ObservatoryError
from observatory.operations.backups import list_backups
from observatory.operations.bootstrap import OperationError
from observatory.operations.database import database_target, verify_database
from observatory.operations.stack import status
from observatory.operations.state import outputs
from observatory.platforms.preview import Preview
from observatory.progress import Reporter, silent, task
from observatory.settings import FLEETS, FleetName, StackSettings, load_file
from observatory.workspace import Workspace

if TYPE_CHECKING:
    import httpx

Verdict = Literal["passed", "failed", "unknown"]
BASIC_SECONDS, COMPREHENSIVE_SECONDS = 120.0, 600.0
ANSWER_SECONDS = 10.0
MONITORING = "monitoring"  # the check that says nothing of the service
SAMPLES = 50  # reads whose 95th percentile is compared with the gates' limit
BACKUP_HOURS = 26  # one a day, and two hours for it to end


class _FailedError(ObservatoryError):
    """A check that found something wrong."""


@dataclass(frozen=True, kw_only=True)
class StackCheck:
    """One thing that was looked at: what was found, and how many seconds that took."""

    name: str
    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StackVerification:
    """All checks of one stack, in the order in which they were made."""

    stack: str
    checks: tuple[StackCheck, ...]

    @property
    def passed(self) -> bool:
        """Every check passed; an unknown one did not."""
        return all(check.verdict == "passed" for check in self.checks)


def verify(
    workspace: Workspace,
    *,
    comprehensive: bool = False,
    target: FleetName | None = None,
    timeout_s: float | None = None,
    report: Reporter = silent,
) -> StackVerification:
    """Look at every part of a stack.

    Args:
        workspace: the stack's.
        comprehensive: look at both fleets, latency, alerts and the newest backup, too.
        target: the fleet to exercise; None is the one that serves.
        timeout_s: after so many seconds no further check is begun, and those left are unknown.
        report: gets progress.

    Raises:
        OperationError: the stack is not up, or not one of this machine.
    """
    deadline = time.monotonic() + (timeout_s or (COMPREHENSIVE_SECONDS if comprehensive else BASIC_SECONDS))
    done = []
    for name, look in _looks(workspace, comprehensive=comprehensive, target=target).items():
        if time.monotonic() > deadline:
            done.append(StackCheck(name=name, verdict="unknown", detail="no time was left to look", seconds=0.0))
            continue
        with task(report, name):
            done.append(_look(name, look))
    return StackVerification(stack=workspace.stack, checks=tuple(done))


def list_checks(
    workspace: Workspace, *, comprehensive: bool = False, target: FleetName | None = None
) -> tuple[StackVerification, tuple[str, ...]]:
    """Look whether settings, secrets and parts of a stack can be read and reached; return that, and the checks' names.

    Raises:
        SettingsError: the stack's configuration is wrong.
        OperationError: the stack is not up, or its secrets cannot be read.
    """
    looks = _looks(workspace, comprehensive=comprehensive, target=target)
    stack = _Stack.of(workspace)
    reach = {"database is reached": stack.reach_database, "service is reached": stack.reach_service}
    reach["Prometheus is reached"] = stack.reach_prometheus
    found = tuple(_look(name, look) for name, look in reach.items())
    return StackVerification(stack=workspace.stack, checks=found), tuple(looks)


Look = Callable[[], str]


def _look(name: str, look: Look) -> StackCheck:
    import httpx  # noqa: PLC0415 - only where it is used

    from observatory.database import DatabaseError  # noqa: PLC0415 - with psycopg
    from observatory.runtime import RuntimeFault  # noqa: PLC0415

    started = time.monotonic()
    verdict: Verdict = "passed"
    try:
        detail = look()
    except (_FailedError, HostsError) as error:
        verdict, detail = "failed", str(error)
    except (httpx.HTTPError, DatabaseError, RuntimeFault, OSError, ValueError, KeyError) as error:
        verdict, detail = "unknown", f"cannot be looked at: {type(error).__name__}: {error}"
    return StackCheck(name=name, verdict=verdict, detail=detail, seconds=time.monotonic() - started)


def _looks(workspace: Workspace, *, comprehensive: bool, target: FleetName | None) -> Mapping[str, Look]:
    """Return the checks by name, in the order in which they are made."""
    stack = _Stack.of(workspace)
    fleets = FLEETS if comprehensive and target is None else (target or stack.rollout.active_fleet,)
    looks: dict[str, Look] = {"daemons": stack.daemons, "service": stack.service}
    looks |= {f"fleet {fleet}": partial(stack.fleet, fleet) for fleet in fleets}
    looks |= {"database": stack.database, MONITORING: stack.monitoring}
    if comprehensive:
        looks |= {"latency": stack.latency, "alerts": stack.alerts, "backup": stack.backup}
    return looks


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """What a stack says of itself, and looks at its parts; each returns what is well, or raises."""

    workspace: Workspace
    settings: StackSettings
    known: Mapping[str, Any] = field(repr=False)
    rollout: RolloutDocument

    @classmethod
    def of(cls, workspace: Workspace) -> _Stack:
        settings = load_file(workspace.config_file)
        rollout = workspace.rollout.read()
        if settings.platform != "local":
            raise OperationError(f"the stack {workspace.stack!r} is on {settings.platform}: only one here is verified")
        known = outputs(workspace, show_secrets=True) if rollout else {}
        if rollout is None or not known:
            raise OperationError(f"the stack {workspace.stack!r} is not up: bring it up by `observatory up` first")
        return cls(workspace=workspace, settings=settings, known=known, rollout=rollout)

    def daemons(self) -> str:
        daemons = status(self.workspace).daemons
        if ill := [f"{daemon.name} is {daemon.health}" for daemon in daemons if daemon.health != "ready"]:
            raise _FailedError(", ".join(ill))
        return f"all {len(daemons)} are ready"

    def service(self) -> str:
        """Read through the public balancer, and look whether a version answers that should."""
        with self._client(self.known["service_url"]) as client:
            answer = client.get("/v1/traces", params={"limit": 1})
        if answer.is_error:
            raise _FailedError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
        version = answer.headers.get("X-Observatory-Version")
        live = {self.rollout.fleet(fleet).version for fleet in FLEETS if self.rollout.fleet(fleet).weight}
        if version not in live:
            raise _FailedError(f"{version} answers, with traffic are {', '.join(sorted(live))}")
        return f"{version} answers"

    def fleet(self, name: FleetName) -> str:
        """Exercise a fleet by the smoke suite, through the preview listener."""
        version = self.rollout.fleet(name).version
        preview = Preview(url=self.known["preview_url"], api_key=self.known["api_key"], marked=self._marked)
        preview.verify(name, version)
        return f"{version} stores and gives back"

    def database(self) -> str:
        found = verify_database(self.workspace)
        failed = [str(check) for check in found.problems]
        if any(check.verdict == "failed" for check in found.problems):
            raise _FailedError("; ".join(failed))
        if failed:
            raise ValueError("; ".join(failed))
        return f"schema {found.version}: {', '.join(check.name for check in found.checks)}"

    def monitoring(self) -> str:
        """Look whether Prometheus reaches all that it scrapes, and an Alertmanager that is ready."""
        targets = self._prometheus("/api/v1/targets", state="active")["activeTargets"]
        if down := [f"{each['scrapeUrl']}: {each['lastError']}" for each in targets if each["health"] != "up"]:
            raise _FailedError("; ".join(down))
        with self._client(self.known["alertmanager_url"]) as client:
            client.get("/-/ready").raise_for_status()
        return f"{len(targets)} targets are scraped, Alertmanager is ready"

    def latency(self) -> str:
        with self._client(self.known["service_url"]) as client:
            answers = [client.get("/v1/traces", params={"limit": 1}).raise_for_status() for _ in range(SAMPLES)]
        took = [answer.elapsed.total_seconds() for answer in answers]
        p95, limit = sorted(took)[int(SAMPLES * 0.95)], self.settings.delivery.gates.p95_s
        if p95 > limit:
            raise _FailedError(f"p95 of {SAMPLES} reads is {p95:.3f} s, {limit:.3f} s allowed")
        return f"p95 of {SAMPLES} reads is {p95:.3f} s"

    def alerts(self) -> str:
        query = 'ALERTS{alertstate="firing",severity="critical"}'
        firing = self._prometheus("/api/v1/query", query=query)["result"]
        if names := sorted({each["metric"]["alertname"] for each in firing}):
            raise _FailedError(f"critical alerts fire: {', '.join(names)}")
        return "no critical alert fires"

    def backup(self) -> str:
        newest = max(list_backups(self.workspace), key=lambda backup: backup.ended, default=None)
        if newest is None:
            raise _FailedError("there is no backup: `observatory backup create` makes one")
        age = datetime.now(UTC) - newest.ended
        if age > timedelta(hours=BACKUP_HOURS):
            raise _FailedError(f"{newest.label} is {age.total_seconds() / 3600:.0f} hours old")
        return f"{newest.label} is {age.total_seconds() / 3600:.1f} hours old"

    def reach_database(self) -> str:
        with self._owner() as connection:
            connection.execute("SELECT")
        return "the owner of the schema logs in"

    def reach_service(self) -> str:
        with self._client(self.known["service_url"]) as client:
            client.get("/health/live").raise_for_status()
        return str(self.known["service_url"])

    def reach_prometheus(self) -> str:
        with self._client(self.known["prometheus_url"]) as client:
            client.get("/-/ready").raise_for_status()
        return str(self.known["prometheus_url"])

    def _prometheus(self, path: str, **parameters: str) -> Any:
        with self._client(self.known["prometheus_url"]) as client:
            return client.get(path, params=parameters).raise_for_status().json()["data"]

    def _client(self, url: str) -> httpx.Client:
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.known['api_key']}"}
        trusted = ssl.create_default_context(cafile=self.known["ca_file"])
        return httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, verify=trusted, trust_env=False)

    @contextlib.contextmanager
    def _owner(self) -> Iterator[Any]:
        from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used

        with connect(database_target(self.workspace).conninfo, purpose="verify") as connection:
            yield connection

    @contextlib.contextmanager
    def _marked(self) -> Iterator[str]:
        from observatory.database.verification_rows import marked_rows  # noqa: PLC0415 - psycopg only where it is used

        with self._owner() as connection, marked_rows(connection) as run:
            yield run
