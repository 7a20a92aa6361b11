"""The platform `local`: every part of the stack is a process on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from observatory.delivery.approvals import FileApprovals
from observatory.delivery.releases import ReleaseStore
from observatory.documents.rollout import FileRolloutStore, RolloutDocument
from observatory.platforms.engine_choice import choose_engine, engine_of
from observatory.platforms.monitoring_files import monitoring_files
from observatory.platforms.platform import (
    DaemonStatus,
    EngineChoice,
    FleetParts,
    LoadedParts,
    Operation,
)
from observatory.platforms.request_counts import BALANCER_TRAFFIC, Traffic
from observatory.platforms.stack_state import SCHEMA_TYPE, declared_schema, engine_options, state_options
from observatory.progress import Reporter, task
from observatory.settings import FLEETS, LocalSettings
from observatory.workspace import Workspace, console_links

if TYPE_CHECKING:
    from observatory.database import Backup
    from observatory.engines.embedded import Result
    from observatory.notifications import Channel
    from observatory.platforms.preview import Preview

CHECKOUT_KEY = "this-checkout"  # the name of the checkout's own key among the trusted ones


@dataclass(frozen=True, kw_only=True)
class LocalPlatform:
    """A stack on this machine; see `observatory.platforms.platform.Platform` for what each member does."""

    workspace: Workspace
    settings: LocalSettings

    needs_plugins: ClassVar[bool] = False
    schema_is_secret: ClassVar[bool] = False
    traffic: ClassVar[Traffic] = BALANCER_TRAFFIC

    @property
    def rollout_store(self) -> FileRolloutStore:
        """A file of the checkout."""
        return self.workspace.rollout

    @property
    def release_store(self) -> ReleaseStore:
        """A directory of the checkout."""
        return self.workspace.releases

    @property
    def approval_store(self) -> FileApprovals:
        """A directory of the checkout."""
        return self.workspace.approvals

    def unsupported(self, operation: Operation) -> str | None:  # noqa: ARG002 - of the protocol
        """Return None: the platform offers every operation."""
        return None

    def trusted_keys(self) -> dict[str, str]:
        """Return the keys of the settings and the checkout's own."""
        from observatory.security.signatures import public_key  # noqa: PLC0415 - cryptography only where it is used

        trusted: dict[str, str] = dict(self.settings.delivery.trusted_keys)
        if self.workspace.signing_key_file.exists():
            trusted[CHECKOUT_KEY] = public_key(self.workspace.signing_key_file.read_text())
        return trusted

    def channels(self) -> Iterator[Channel]:
        """Yield the configured channels; the stack's own receiver replaces Slack, PagerDuty and webhook."""
        from observatory.nodes.alertmanager import receiver_url  # noqa: PLC0415 - only for notifications
        from observatory.notifications.configured import configured_channels, receiver_channels  # noqa: PLC0415

        own = receiver_channels(receiver_url(self.settings), monitoring_files(self.workspace).client)
        yield from (own | configured_channels(self.settings, self.workspace.root)).values()

    def administrator(self, outputs: Mapping[str, Any]) -> str:
        """Return the connection string of the outputs."""
        from observatory.database.connection import with_database  # noqa: PLC0415 - psycopg only where it is used

        return with_database(str(outputs["admin_database_url"]), self.settings.database.name)

    def fleet_parts(
        self,
        outputs: Mapping[str, Any],
        preview: Preview,
        choice: EngineChoice,
    ) -> FleetParts:
        """Return HAProxy, the program's fleets, trials in the sandbox and HAProxy's servers."""
        from observatory.delivery.environment import UnjudgedError  # noqa: PLC0415 - only for deliveries
        from observatory.platforms.local.balancer import HaproxyBalancer  # noqa: PLC0415
        from observatory.platforms.local.hosts import LocalHosts  # noqa: PLC0415
        from observatory.platforms.local.instances import LocalInstances  # noqa: PLC0415
        from observatory.platforms.local.trial import LocalTrial  # noqa: PLC0415

        sandbox, size, engine = self.workspace.sandbox, self.settings.fleets.size, engine_of(choose_engine(choice))
        first_ports = {fleet: int(getattr(self.settings.ports, fleet)) for fleet in FLEETS}
        hosts = LocalHosts(
            rollout=self.rollout_store,
            ports={fleet: range(port, port + size) for fleet, port in first_ports.items()},
            sandbox=sandbox,
            preview=preview,
            plan=lambda: self._without_applied_schema(engine.preview(engine_options(self))),
            up=lambda: engine.up(engine_options(self)),
            administrator=lambda: self.administrator(outputs),
        )
        trial = LocalTrial(
            sandbox=sandbox,
            settings=self.settings,
            releases=self.release_store,
            marked_rows=preview.marked_rows,
            live=lambda: preview.place(max(FLEETS, key=lambda fleet: hosts.state(fleet).weight)),
            watching=lambda: hosts.judged(UnjudgedError),
        )
        instances = LocalInstances(hosts=hosts, sandbox=sandbox, drain_seconds=self.settings.fleets.drain_seconds)
        return FleetParts(
            balancer=HaproxyBalancer(sandbox),
            hosts=hosts,
            trial=trial,
            instances=instances,
            instance_url=instances.url,
        )

    def _without_applied_schema(self, plan: Result) -> Result:
        """Drop the step on the schema where the migrations are applied: `deploy database` does not change the state.

        Raises:
            HostsError: the database does not say which are applied.
        """
        from observatory.database import DatabaseError, status  # noqa: PLC0415 - psycopg only where it is used
        from observatory.delivery.environment import HostsError  # noqa: PLC0415 - only for deliveries

        declared = declared_schema(self)
        try:
            if declared is None or status(declared["conninfo"], migrations=self.workspace.migrations).pending:
                return plan
        except DatabaseError as error:
            raise HostsError(str(error)) from error
        return replace(plan, steps=tuple(step for step in plan.steps if step.type != SCHEMA_TYPE))

    def prepare(self, report: Reporter) -> None:
        """Create the root filesystem, the first release and the rollout document."""
        from observatory.platforms.local.bootstrap import prepare  # noqa: PLC0415 - only before an `up`

        prepare(self, report)

    def before_up(self, report: Reporter) -> None:
        """Check that ports and directories of backups can be used, and renew the passwords that the server refuses."""
        from observatory.backups.repository_places import check_places  # noqa: PLC0415 - only before an `up`
        from observatory.nodes.pgbackrest import outside_directories  # noqa: PLC0415
        from observatory.platforms.local.logins import renew_refused_logins  # noqa: PLC0415 - only before an `up`
        from observatory.runtime import check_ports  # noqa: PLC0415
        from observatory.scheduling.scheduler_process import console_pid, scheduler_pid  # noqa: PLC0415

        sandbox = self.workspace.sandbox
        check_places(sandbox, outside_directories(self.settings))
        ports = {f"ports.{name}": port for name, port in self.settings.named_ports()}
        of_host = [pid for pid in (scheduler_pid(sandbox), console_pid(sandbox)) if pid]
        check_ports(ports, ours=[*sandbox.members(), *of_host])
        renew_refused_logins(self, report)

    def current_rollout(self) -> RolloutDocument | None:
        """Return the rollout document, or the rollout of the state."""
        from observatory.platforms.local.bootstrap import rollout_of_state  # noqa: PLC0415 - only for a status

        return self.rollout_store.read() or rollout_of_state(self.workspace)

    def daemons(self, rollout: RolloutDocument) -> list[DaemonStatus]:
        """Return the status of the sandbox's daemons, PostgreSQL and the scheduler."""
        from observatory.platforms.local.status import daemon_statuses  # noqa: PLC0415 - only for a status

        return daemon_statuses(self.workspace.sandbox, self.settings, rollout, self.workspace.stack)

    def loaded_parts(self, rollout: RolloutDocument, query: Callable[[str, str], Any]) -> tuple[LoadedParts, ...]:
        """Return the rules, targets and receivers of the monitoring, and the servers of HAProxy."""
        from observatory.platforms.local.loaded import loaded_parts  # noqa: PLC0415 - only for a verification

        return loaded_parts(self.workspace.sandbox, self.settings, rollout, self.workspace.stack, query)

    def used_logins(self, outputs: Mapping[str, Any]) -> set[str]:
        """Return the logins of pgBouncer's clients and of administrators."""
        from observatory.platforms.local.logins import used_logins  # noqa: PLC0415 - only for a rotation

        return used_logins(self, outputs)

    def migration_backup(self) -> Backup:
        """Return pgBackRest in the sandbox."""
        from observatory.backups.migration_backup import MigrationBackup  # noqa: PLC0415 - only for migrations
        from observatory.backups.receipts import DrillRequirement  # noqa: PLC0415

        settings, workspace = self.settings.backups, self.workspace
        required = DrillRequirement(
            days=settings.require_drill_days, stack=workspace.stack, key_file=workspace.signing_key_file
        )
        return MigrationBackup(workspace.sandbox, reuse_minutes=settings.reuse_minutes, required=required)

    def archive_journal(self) -> None:
        """Copy the journal beside the backups in the stack's home."""
        from observatory.platforms.local.journal_archive import archive_journal  # noqa: PLC0415 - after a delivery

        archive_journal(self.workspace)

    def stop(self, lock: Callable[[], AbstractContextManager[None]], *, keep_data: bool, report: Reporter) -> None:
        """Stop the watcher, the scheduler and every daemon, and remove clones of the database."""
        from observatory.backups.flashback.clones import close_all  # noqa: PLC0415 - only for `down`
        from observatory.scheduling.scheduler_process import stop_scheduler  # noqa: PLC0415

        if not self.workspace.home.exists():
            return
        with task(report, "stop every daemon"), lock():
            # First: no job may start, and no daemon may be restarted, while the daemons stop.
            stop_scheduler(self.workspace.sandbox, root=self.workspace.root)
            self.workspace.sandbox.stop()
            close_all(self.workspace.sandbox)
            if not keep_data:
                self.workspace.discard_home()

    def remove(self, destroy: Callable[[], None], report: Reporter) -> None:
        """Remove state, documents and data. Works without the passphrase: everything is on this machine."""
        from observatory.engines import embedded  # noqa: PLC0415 - only for `down`

        if embedded.exists(state_options(self.workspace)):
            if self.workspace.passphrase_file.exists():
                destroy()
            embedded.remove(state_options(self.workspace))
        with task(report, "remove data and state"):
            self.workspace.rollout.remove()
            self.workspace.access.remove()
            shutil.rmtree(console_links(self.workspace), onerror=_ignore_missing)
            for home in self.workspace.discarded:
                shutil.rmtree(home, onerror=_ignore_missing)


def _ignore_missing(_function: object, _path: str, caught: tuple[type[BaseException], BaseException, object]) -> None:
    """Let two commands remove the same tree."""
    if not isinstance(caught[1], FileNotFoundError):
        raise caught[1]
