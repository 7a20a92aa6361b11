"""The status of a stack: daemons, rollout, schema, jobs and passwords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.backups.repository import kept_wal
from observatory.backups.rollback.record import RollbackRecord, RollbackRecords
from observatory.documents.journal import Entry, last_entry
from observatory.documents.rollout import RolloutDocument
from observatory.engines import embedded as engine
from observatory.nodes.programs.alert_receiver import SILENCE_SECONDS
from observatory.nodes.programs.backup_repository import WaitingWal
from observatory.nodes.storage import instance_name
from observatory.operations.certificates import list_certificates, missing_certificates
from observatory.operations.password_status import PasswordStatus, password_statuses
from observatory.operations.scheduler import JobStatus, jobs
from observatory.platforms import open_platform
from observatory.platforms.platform import DaemonStatus, check_supported
from observatory.platforms.stack_state import outputs, state_options
from observatory.runtime.home import check_unclaimed
from observatory.scheduling.heartbeat import heartbeat_age
from observatory.settings import FLEETS, FleetName
from observatory.waiting import poll
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.security.certificates import Validity

SETTLE_S = 30.0
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Status:
    """The current state of a stack.

    Attributes:
        daemons: status of each; empty where the stack is not up.
        rollout: the rollout document; None where the stack is not up.
        schema_version: the number of the newest applied migration; None where there is none.
        fleet_size: instances of each fleet.
        jobs: status of each host job.
        passwords: status of each role's password.
        certificates: validity of each certificate, the next to expire first.
        missing_certificates: names of declared certificates without a file.
        waiting_wal: WAL that PostgreSQL keeps because a backup repository does not have it yet.
        database_rollback: a rollback of the database that is not finished; None where there is none.
        rollback_left_over: what a rollback has left that was killed before it was recorded.
        heartbeat_age: seconds since the last heartbeat of monitoring; None before the first one.
        evaluation: the last gate evaluation of the current or last deployment.
    """

    daemons: list[DaemonStatus]
    rollout: RolloutDocument | None
    schema_version: int | None
    fleet_size: int
    jobs: list[JobStatus]
    passwords: list[PasswordStatus]
    certificates: Sequence[Validity] = ()
    missing_certificates: Sequence[str] = ()
    waiting_wal: WaitingWal = field(default_factory=WaitingWal)
    database_rollback: RollbackRecord | None = None
    rollback_left_over: Sequence[Path] = ()
    heartbeat_age: float | None = None
    evaluation: Entry | None = None

    def instances(self, fleet: FleetName) -> list[DaemonStatus]:
        """Return the instances of a fleet."""
        names = {instance_name(fleet, index) for index in range(1, self.fleet_size + 1)}
        return [each for each in self.daemons if each.name in names]

    @property
    def monitoring_down(self) -> bool:
        """Whether no heartbeat of monitoring has come for so long that alerts are not delivered."""
        return self.heartbeat_age is not None and self.heartbeat_age > SILENCE_SECONDS

    @property
    def wrong_versions(self) -> list[DaemonStatus]:
        """The instances that run another version than the rollout document has; a fleet being replaced has none."""
        moving = self.rollout.unfinished if self.rollout else None
        settled = (fleet for fleet in FLEETS if not (moving and moving.target == fleet))
        return [each for fleet in settled for each in self.instances(fleet) if not each.as_deployed]

    @property
    def healthy(self) -> bool:
        """Whether the stack is up, and every daemon that should run is ready and of the right version."""
        ready = bool(self.daemons) and all(daemon.as_declared for daemon in self.daemons)
        return ready and not self.wrong_versions


def status(workspace: Workspace) -> Status:
    """Return the status of a stack.

    Raises:
        OperationError: the platform is not supported.
        HomeError: the stack's daemons run, and its state is missing; or its home is another stack's.
        SandboxError: the supervisor does not answer.
    """
    platform = open_platform(workspace)
    check_supported(platform, "status")
    size, rollout = platform.settings.fleets.size, platform.current_rollout()
    if rollout is None or not engine.resources(state_options(workspace)):
        if workspace.home.is_dir():
            check_unclaimed(workspace.sandbox, engine.full_name(state_options(workspace)))
        return Status(daemons=[], rollout=None, schema_version=None, fleet_size=size, jobs=[], passwords=[])
    rollbacks = RollbackRecords(workspace.home)
    return Status(
        daemons=platform.daemons(rollout),
        rollout=rollout,
        schema_version=outputs(platform).get("schema_version"),
        fleet_size=size,
        jobs=jobs(workspace),
        passwords=password_statuses(workspace, platform.settings),
        certificates=list_certificates(workspace),
        missing_certificates=missing_certificates(workspace),
        waiting_wal=kept_wal(workspace.sandbox),
        database_rollback=rollbacks.unfinished(),
        rollback_left_over=rollbacks.left_over(),
        heartbeat_age=heartbeat_age(workspace.sandbox),
        evaluation=_last_evaluation(workspace, rollout),
    )


def settled_status(workspace: Workspace) -> Status:
    """Return the status as soon as every daemon is ready, at most 30 s later: a daemon may still be reconnecting."""
    return poll(lambda: status(workspace), until=lambda found: found.healthy, timeout_s=SETTLE_S, interval_s=POLL_S)


def _last_evaluation(workspace: Workspace, rollout: RolloutDocument) -> Entry | None:
    evaluation = last_entry(workspace.journal, "gate")
    if evaluation is None or rollout.deployment is None:
        return None
    return evaluation if evaluation.details.get("deployment") == rollout.deployment.id else None
