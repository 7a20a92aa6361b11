"""The checks of a stack: each part is used the way its clients use it.

Each check returns its result as text, or raises: `CheckFailedError` and `HostsError` if the check failed, any other
error if the part cannot be checked.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from observatory.documents.rollout import RolloutDocument, other
from observatory.nodes.programs.alert_receiver import SILENCE_SECONDS
from observatory.nodes.prometheus import thresholds
from observatory.operations.backup_checks import BackupChecks
from observatory.operations.certificates import list_certificates, missing_certificates
from observatory.operations.checks import Check, CheckFailedError
from observatory.operations.database import verify_database
from observatory.operations.migration_targets import database_target
from observatory.platforms import open_platform
from observatory.platforms.errors import StackNotUpError
from observatory.platforms.monitoring_files import monitoring_files
from observatory.platforms.platform import OFF, Platform, check_supported
from observatory.platforms.preview import Preview
from observatory.platforms.stack_state import outputs
from observatory.scheduling.heartbeat import heartbeat_age
from observatory.settings import FLEETS, FleetName
from observatory.workspace import Workspace

if TYPE_CHECKING:
    import httpx

    from observatory.database.verification_rows import MarkedRows

ANSWER_SECONDS = 10.0
MONITORING, BACKUPS, CERTIFICATES = "monitoring", "backups", "certificates"
INDEPENDENT_CHECKS = frozenset({MONITORING, BACKUPS, CERTIFICATES})  # of the service: a deployment cannot mend them
SAMPLES = 50  # reads whose 95th percentile is compared with the gates' limit


@dataclass(frozen=True, kw_only=True)
class StackChecks:
    """The checks of one stack, with its platform, outputs and rollout document."""

    platform: Platform
    outputs: Mapping[str, Any] = field(repr=False)
    rollout: RolloutDocument

    @classmethod
    def of(cls, workspace: Workspace) -> StackChecks:
        """Return the checks of a stack that is up.

        Raises:
            StackNotUpError, UnsupportedOperationError: the stack is not up, or its platform is not supported.
        """
        platform = open_platform(workspace)
        check_supported(platform, "verify")
        rollout = platform.rollout_store.read()
        known = outputs(platform, show_secrets=True) if rollout else {}
        if rollout is None or not known:
            raise StackNotUpError(workspace.stack)
        return cls(platform=platform, outputs=known, rollout=rollout)

    def all(self, *, comprehensive: bool, target: FleetName | None) -> dict[str, Check]:
        """Return the checks by name, in their order."""
        running = tuple(fleet for fleet in FLEETS if not self.rollout.fleet(fleet).stopped)
        fleets = running if comprehensive and target is None else (target or self.rollout.active_fleet,)
        checks: dict[str, Check] = {"daemons": self.daemons, "service": self.service}
        checks |= {f"fleet {fleet}": partial(self.fleet, fleet) for fleet in fleets}
        checks |= {"database": self.database, BACKUPS: self.backups.repository, CERTIFICATES: self.certificates}
        checks |= {MONITORING: self.monitoring}
        if comprehensive:
            checks |= {"latency": self.latency, "alerts": self.alerts}
            checks |= {"backup": self.backups.newest, "backup contents": self.backups.contents}
        return checks

    def connections(self) -> dict[str, Check]:
        """Return the checks that only connect, by name."""
        return {
            "connection to the database": self.connect_database,
            "connection to the service": self.connect_service,
            "connection to Prometheus": self.connect_prometheus,
        }

    @property
    def backups(self) -> BackupChecks:
        """The checks of the backups."""
        limits = thresholds(self.platform.settings)
        return BackupChecks(workspace=self.platform.workspace, newest_age=timedelta(seconds=limits.backup_age_seconds))

    def daemons(self) -> str:
        """Check that every daemon is ready."""
        daemons = self.platform.daemons(self.rollout)
        if not_ready := [f"{daemon.name} is {daemon.health}" for daemon in daemons if not daemon.as_declared]:
            raise CheckFailedError(", ".join(not_ready))
        off = [daemon.name for daemon in daemons if daemon.health == OFF]
        stopped = f"; stopped by a rollback: {', '.join(off)}" if off else ""
        return f"{len(daemons) - len(off)} of {len(daemons) - len(off)} ready{stopped}"

    def service(self) -> str:
        """Read through the public balancer, and check that a version with traffic answers."""
        with self._client(self.outputs["service_url"]) as client:
            answer = client.get("/v1/traces", params={"limit": 1})
        if answer.is_error:
            raise CheckFailedError(f"{answer.request.url} answered {answer.status_code}: {answer.text[:300]}")
        version = answer.headers.get("X-Observatory-Version")
        expected = {self.rollout.fleet(fleet).version for fleet in FLEETS if self.rollout.fleet(fleet).weight}
        if version not in expected:
            raise CheckFailedError(f"version {version} answers, expected {', '.join(sorted(expected))}")
        return f"version {version} answers"

    def fleet(self, name: FleetName) -> str:
        """Exercise a fleet with the smoke suite, through the preview listener."""
        version = self.rollout.fleet(name).version
        if self.rollout.fleet(name).stopped:
            raise CheckFailedError(f"a rollback has stopped {name} with version {version}: deploy a version to it")
        preview = Preview(url=self.outputs["preview_url"], marked_rows=self._marked_rows)
        beside = self.rollout.fleet(other(name))
        skipped = (preview.exercise if beside.stopped else preview.verify)(name, version)
        return "; ".join((f"version {version} stores and returns what the database has", *skipped))

    def database(self) -> str:
        """Verify the schema, and write and read a row."""
        found = verify_database(self.platform.workspace)
        problems = "; ".join(str(check) for check in found.problems)
        if any(check.verdict == "failed" for check in found.problems):
            raise CheckFailedError(problems)
        if problems:
            raise ValueError(problems)
        warnings = "".join(f"; warning: not made by a migration: {each}" for each in found.warnings)
        return f"schema {found.version}: {', '.join(check.name for check in found.checks)}{warnings}"

    def monitoring(self) -> str:
        """Check what Prometheus, Alertmanager and HAProxy have loaded, and that Prometheus reaches every target."""
        parts = self.platform.loaded_parts(self.rollout, self._json)
        if wrong := [str(each) for each in parts if each.loaded != each.declared]:
            raise CheckFailedError(f"{'; '.join(wrong)}: run `observatory up`")
        targets = self._prometheus("/api/v1/targets", state="active")["activeTargets"]
        expected = [each for each in targets if not _is_stopped(self.rollout, each["labels"])]
        if down := [f"{each['scrapeUrl']}: {each['lastError']}" for each in expected if each["health"] != "up"]:
            raise CheckFailedError("; ".join(down))
        with monitoring_client(self.platform.workspace, self.outputs["alertmanager_url"]) as client:
            client.get("/-/ready").raise_for_status()
        age = heartbeat_age(self.platform.workspace.sandbox)
        if age is not None and age > SILENCE_SECONDS:
            raise CheckFailedError(f"no heartbeat of monitoring for {age:.0f} s: see log/alertmanager.log")
        return f"{'; '.join(str(each) for each in parts)}; every target is up, Alertmanager is ready"

    def certificates(self) -> str:
        """Check that no certificate is missing, and how long each is valid."""
        if missing := missing_certificates(self.platform.workspace):
            raise CheckFailedError(f"{', '.join(missing)}: missing, run `observatory up`")
        found = list_certificates(self.platform.workspace)
        if expiring := [f"{each.name} {each.left}" for each in found if each.expiring]:
            raise CheckFailedError(f"{', '.join(expiring)}: run `observatory certificates renew`")
        return f"{len(found)} valid, the first {found[0].left}"

    def latency(self) -> str:
        """Check the 95th percentile of reads against the gates' limit."""
        with self._client(self.outputs["service_url"]) as client:
            answers = [client.get("/v1/traces", params={"limit": 1}).raise_for_status() for _ in range(SAMPLES)]
        took = [answer.elapsed.total_seconds() for answer in answers]
        p95, limit = sorted(took)[int(SAMPLES * 0.95)], self.platform.settings.delivery.gates.p95_s
        if p95 > limit:
            raise CheckFailedError(f"p95 of {SAMPLES} reads is {p95:.3f} s, the limit is {limit:.3f} s")
        return f"p95 of {SAMPLES} reads is {p95:.3f} s"

    def alerts(self) -> str:
        """Check that no critical alert is firing."""
        query = 'ALERTS{alertstate="firing",severity="critical"}'
        firing = self._prometheus("/api/v1/query", query=query)["result"]
        if names := sorted({each["metric"]["alertname"] for each in firing}):
            raise CheckFailedError(f"critical alerts are firing: {', '.join(names)}")
        return "no critical alert is firing"

    def connect_database(self) -> str:
        """Connect as the owner of the schema."""
        with self._owner() as connection:
            connection.execute("SELECT")
        return "the owner of the schema can connect"

    def connect_service(self) -> str:
        """Check the service's liveness endpoint."""
        with self._client(self.outputs["service_url"]) as client:
            client.get("/health/live").raise_for_status()
        return str(self.outputs["service_url"])

    def connect_prometheus(self) -> str:
        """Check Prometheus' readiness endpoint."""
        with monitoring_client(self.platform.workspace, self.outputs["prometheus_url"]) as client:
            client.get("/-/ready").raise_for_status()
        return str(self.outputs["prometheus_url"])

    def _json(self, output: str, path: str) -> Any:
        """Return the answer of the server whose URL is an output of the stack."""
        with monitoring_client(self.platform.workspace, self.outputs[output]) as client:
            return client.get(path).raise_for_status().json()

    def _prometheus(self, path: str, **parameters: str) -> Any:
        with monitoring_client(self.platform.workspace, self.outputs["prometheus_url"]) as client:
            return client.get(path, params=parameters).raise_for_status().json()["data"]

    def _client(self, url: str) -> httpx.Client:
        import httpx  # noqa: PLC0415 - only where it is used

        headers = {"Authorization": f"Bearer {self.outputs['api_key']}"}
        trusted = ssl.create_default_context(cafile=self.outputs["ca_file"])
        return httpx.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, verify=trusted, trust_env=False)

    @contextlib.contextmanager
    def _owner(self) -> Iterator[Any]:
        from observatory.database import connect  # noqa: PLC0415 - psycopg only where it is used

        with connect(database_target(self.platform.workspace).conninfo, purpose="verify") as connection:
            yield connection

    def _marked_rows(self) -> AbstractContextManager[MarkedRows]:
        from observatory.database.verification_session import verification_rows  # noqa: PLC0415 - loads psycopg

        return verification_rows(database_target(self.platform.workspace).conninfo)


def _is_stopped(rollout: RolloutDocument, labels: Mapping[str, str]) -> bool:
    """Return whether a scrape target is of a fleet that a rollback has stopped."""
    return any(labels.get("fleet") == fleet and rollout.fleet(fleet).stopped for fleet in FLEETS)


def monitoring_client(workspace: Workspace, url: str) -> httpx.Client:
    """Return a client of Prometheus or Alertmanager, with the certificate that they require."""
    import httpx  # noqa: PLC0415 - only where it is used

    client = monitoring_files(workspace).client
    return httpx.Client(
        base_url=url, timeout=ANSWER_SECONDS, verify=client.context() if client else True, trust_env=False
    )
