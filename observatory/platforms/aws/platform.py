"""The platform `aws`: a load balancer, Auto Scaling groups and documents in the stack's release bucket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import ReleaseError
from observatory.documents.rollout import RolloutDocument
from observatory.platforms.clock import SystemClock
from observatory.platforms.platform import (
    DaemonStatus,
    EngineChoice,
    FleetParts,
    LoadedParts,
    Operation,
    check_supported,
)
from observatory.platforms.recovered_rollout import recover_rollout
from observatory.platforms.request_counts import SERVICE_TRAFFIC, Traffic
from observatory.progress import Reporter
from observatory.settings import FLEETS, AwsSettings
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Backup
    from observatory.notifications import Channel
    from observatory.platforms.aws.documents import S3Approvals, S3ReleaseStore, S3RolloutStore
    from observatory.platforms.preview import Preview

REASONS: Mapping[Operation, str] = {
    "status": (
        "`status` reads processes of this machine, and the stack {stack!r} has none: Prometheus ({prometheus}) reports "
        "its machines' health, `observatory outputs -e {stack}` what was declared"
    ),
    "verify": (
        "`verify` supports stacks on this machine only, and {stack!r} is on AWS: deployments verify its fleets, and "
        "Prometheus ({prometheus}) reports its machines' health"
    ),
    "release deploy": (
        "`release deploy` supports stacks on this machine only, and {stack!r} is on AWS: run `observatory up -e "
        "{stack}` for migrations, then `observatory deploy application -e {stack}`"
    ),
    "rotate-passwords": (
        "`rotate-passwords` supports stacks on this machine only: the clients' logins of {stack!r}, on AWS, cannot be "
        "read from here; nothing was changed"
    ),
    "down --keep-data": (
        "`down --keep-data` supports stacks on this machine only: {stack!r} is on AWS, where `down` deletes all "
        "resources; nothing was changed"
    ),
    "backup": (
        "backups of {stack!r}, on AWS, are made on its database's machine by systemd timers; they cannot be made or "
        "listed from here"
    ),
    "rollback --method database": (
        "a rollback of the database supports stacks on this machine only: restore {stack!r}, on AWS, on its database's "
        "machine (see docs/backups.md); nothing was changed"
    ),
    "certificates": "the certificates of {stack!r} are in its secret store, and `up` renews them; nothing was changed",
    "logs": (
        "`logs` supports stacks on this machine only: the machines of {stack!r}, on AWS, keep their logs in the "
        "journal; read it there with `journalctl -u DAEMON`"
    ),
    "psql": (
        "`psql` supports stacks on this machine only: for {stack!r}, on AWS, read the connection from the secret that "
        "the output admin_database_url names"
    ),
    "exec": (
        "`exec` supports stacks on this machine only: run the command on the machines of {stack!r}, on AWS, with "
        "`aws ssm start-session`"
    ),
    "log rotation": "the machines of {stack!r}, on AWS, rotate their own logs; nothing was changed",
    "scheduler": "the machines of {stack!r}, on AWS, run the jobs by systemd timers; nothing runs from here",
    "console": (
        "the console shows stacks on this machine only: Grafana has the dashboards of {stack!r}, on AWS, and "
        "Prometheus ({prometheus}) its alerts"
    ),
}


@dataclass(frozen=True, kw_only=True)
class AwsPlatform:
    """A stack on AWS; see `observatory.platforms.platform.Platform` for what each member does."""

    workspace: Workspace
    settings: AwsSettings

    needs_plugins: ClassVar[bool] = True
    schema_is_secret: ClassVar[bool] = True
    traffic: ClassVar[Traffic] = SERVICE_TRAFFIC

    @cached_property
    def rollout_store(self) -> S3RolloutStore:
        """An object in the release bucket."""
        from observatory.platforms.aws.clients import client  # noqa: PLC0415 - boto3 only where AWS is used
        from observatory.platforms.aws.documents import S3RolloutStore  # noqa: PLC0415

        key = self.settings.rollout_key(self.workspace.stack)
        return S3RolloutStore(client=client("s3", self._region), bucket=self.settings.release_bucket, key=key)

    @cached_property
    def release_store(self) -> S3ReleaseStore:
        """Objects in the release bucket."""
        from observatory.platforms.aws.clients import client  # noqa: PLC0415 - boto3 only where AWS is used
        from observatory.platforms.aws.documents import S3ReleaseStore  # noqa: PLC0415

        return S3ReleaseStore(client=client("s3", self._region), bucket=self.settings.release_bucket)

    @cached_property
    def approval_store(self) -> S3Approvals:
        """Objects in the release bucket."""
        from observatory.platforms.aws.clients import client  # noqa: PLC0415 - boto3 only where AWS is used
        from observatory.platforms.aws.documents import S3Approvals  # noqa: PLC0415

        bucket, stack = self.settings.release_bucket, self.workspace.stack
        return S3Approvals(client=client("s3", self._region), bucket=bucket, stack=stack)

    @property
    def _region(self) -> str:
        return self.settings.account.region

    def unsupported(self, operation: Operation) -> str | None:
        """Return the reason of `REASONS`."""
        prometheus = self.settings.kubernetes.prometheus_url
        return REASONS[operation].format(stack=self.workspace.stack, prometheus=prometheus)

    def trusted_keys(self) -> dict[str, str]:
        """Return the keys of the settings."""
        return dict(self.settings.delivery.trusted_keys)

    def channels(self) -> Iterator[Channel]:
        """Yield the configured channels."""
        from observatory.notifications.configured import configured_channels  # noqa: PLC0415 - only for notifications

        yield from configured_channels(self.settings, self.workspace.root).values()

    def administrator(self, outputs: Mapping[str, Any]) -> str:
        """Return the connection string of the secret that the outputs name, in Secrets Manager."""
        from observatory.database.connection import with_database  # noqa: PLC0415 - psycopg only where it is used
        from observatory.platforms.aws.clients import aws_errors, client  # noqa: PLC0415

        arn = str(outputs["admin_database_url"])
        remedy = "grant this user the right to read the secret: deliveries connect as the database's administrator"
        with aws_errors(f"{arn} cannot be read", DeliveryRefusedError, remedy=remedy):
            content = client("secretsmanager", self._region).get_secret_value(SecretId=arn)["SecretString"]
        return with_database(json.loads(content)["url"], self.settings.database.name)

    def fleet_parts(
        self,
        outputs: Mapping[str, Any],
        preview: Preview,
        choice: EngineChoice,  # noqa: ARG002 - of the protocol: machines install versions, no engine does
    ) -> FleetParts:
        """Return the listener's rule and the Auto Scaling groups that the outputs name."""
        from observatory.platforms.aws.balancer import AlbBalancer  # noqa: PLC0415 - boto3 only where AWS is used
        from observatory.platforms.aws.clients import client  # noqa: PLC0415
        from observatory.platforms.aws.hosts import AwsHosts, Fleet  # noqa: PLC0415

        if "delivery" not in outputs:
            raise DeliveryRefusedError(
                f"the stack {self.workspace.stack!r} was last brought up by an earlier version of this program, whose "
                "outputs do not name the fleets' parts: run `observatory up` first"
            )
        named = outputs["delivery"]
        fleets = {fleet: Fleet(**named["fleets"][fleet]) for fleet in FLEETS}
        balancing = client("elbv2", self._region)
        hosts = AwsHosts(
            rollout=self.rollout_store,
            scaling=client("autoscaling", self._region),
            balancing=balancing,
            fleets=fleets,
            preview=preview,
            clock=SystemClock(),
        )
        target_groups = {fleet: parts.target_group for fleet, parts in fleets.items()}
        balancer = AlbBalancer(client=balancing, rule=named["rule"], target_groups=target_groups)
        return FleetParts(balancer=balancer, hosts=hosts)

    def prepare(self, report: Reporter) -> None:
        """Check that the release bucket has the releases that the machines will install, before any is created.

        Machines read the rollout document at their start, so a damaged or deleted one is written again.
        """
        recover_rollout(self.rollout_store, report)
        current, first = self.rollout_store.read(), self.settings.first_rollout
        for state in (current.blue, current.green) if current else (first,):
            stored = self.release_store.manifest(state.version).sha256
            if stored != state.sha256:
                raise ReleaseError(
                    f"a fleet is to run {state.version} with SHA-256 {state.sha256}, but the stored release has "
                    f"{stored}: add the right release, or correct first_rollout before the first `up`"
                )

    def before_up(self, report: Reporter) -> None:
        """Check nothing: the CLI and AWS report what is missing."""

    def current_rollout(self) -> RolloutDocument | None:
        """Return the rollout document."""
        return self.rollout_store.read()

    def daemons(self, rollout: RolloutDocument) -> list[DaemonStatus]:  # noqa: ARG002 - of the protocol
        """Refuse: the daemons run on other machines."""
        check_supported(self, "status")
        return []

    def loaded_parts(self, rollout: RolloutDocument, query: object) -> tuple[LoadedParts, ...]:  # noqa: ARG002
        """Refuse: the daemons run on other machines."""
        check_supported(self, "verify")
        return ()

    def used_logins(self, outputs: Mapping[str, Any]) -> set[str]:  # noqa: ARG002 - of the protocol
        """Refuse: pgBouncer's console is reached on its machine only."""
        check_supported(self, "rotate-passwords")
        return set()

    def migration_backup(self) -> Backup:
        """Return a backup that refuses."""
        from observatory.platforms.aws.backups import NoMigrationBackup  # noqa: PLC0415 - only for migrations

        return NoMigrationBackup(stack=self.workspace.stack)

    def archive_journal(self) -> None:
        """Keep no copy besides the journal and the audit table."""

    def stop(self, lock: Callable[[], AbstractContextManager[None]], *, keep_data: bool, report: Reporter) -> None:
        """Stop nothing: no daemon of the stack runs on this machine."""

    def remove(self, destroy: Callable[[], None], report: Reporter) -> None:  # noqa: ARG002 - of the protocol
        """Delete the resources; the empty stack stays in the state."""
        destroy()
