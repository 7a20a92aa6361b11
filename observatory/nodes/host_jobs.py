"""The list of the scheduled jobs: name, command, schedule and timeout of each.

Every platform uses this list: `observatory scheduler` runs it on `local`, systemd's timers on AWS
(`observatory.nodes.timers`). Jobs inside the database are pg_cron's or TimescaleDB's.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from observatory.settings import StackSettings
from observatory.settings.cron import Cron

HOUR = 3600
BACKUP_JOBS = {"full": "backup-full", "differential": "backup-differential"}  # by the type of the backup
RESTORE_DRILL = "restore-drill"


class HostJob(BaseModel):
    """One job: `command` has the arguments of `observatory`; it is stopped after `timeout` seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    description: str
    command: tuple[str, ...]
    cron: str
    timeout: int = Field(gt=0)

    @property
    def calendar(self) -> Cron:
        """The schedule of the job."""
        return Cron.parse(self.cron)


def host_jobs(settings: StackSettings) -> tuple[HostJob, ...]:
    """Return the jobs of a stack."""
    schedule = settings.schedule
    return (
        HostJob(
            name=BACKUP_JOBS["full"],
            description="Full backup of the database",
            command=("backup", "create", "--type", "full"),
            cron=schedule.backup_full,
            timeout=12 * HOUR,
        ),
        HostJob(
            name=BACKUP_JOBS["differential"],
            description="Backup of what has changed since the last full one",
            command=("backup", "create", "--type", "differential"),
            cron=schedule.backup_differential,
            timeout=6 * HOUR,
        ),
        HostJob(
            name="backup-check",
            description="Check that no backup and no WAL segment is missing",
            command=("backup", "verify", "--exit-zero"),
            cron=schedule.backup_check,
            timeout=600,
        ),
        HostJob(
            name="backup-contents",
            description="Check of the contents of every file of the backup repository",
            command=("backup", "verify", "--contents", "--exit-zero"),
            cron=schedule.backup_contents,
            timeout=12 * HOUR,
        ),
        HostJob(
            name="log-rotation",
            description="Rotation of the daemons' logs",
            command=("scheduler", "rotate-logs"),
            cron=schedule.log_rotation,
            timeout=600,
        ),
        *_drill(settings),
        *_certificates(settings),
        *_clones(settings),
        *_sample(settings),
    )


def _drill(settings: StackSettings) -> tuple[HostJob, ...]:
    """Return the job of the restore drill; on AWS the database's machine has not this library."""
    if settings.platform != "local":
        return ()
    job = HostJob(
        name=RESTORE_DRILL,
        description="Restore of a backup, compared with recorded values; the repositories alternate",
        command=("backup", "restore-test"),
        cron=settings.schedule.restore_drill,
        timeout=12 * HOUR,
    )
    return (job,)


def _certificates(settings: StackSettings) -> tuple[HostJob, ...]:
    """Return the job that renews certificates; on AWS they are in a secret store, which only `up` writes."""
    if settings.platform != "local":
        return ()
    job = HostJob(
        name="certificates",
        description="Renewal of certificates in their last 30 days",
        command=("certificates", "renew"),
        cron=settings.schedule.certificates,
        timeout=1800,
    )
    return (job,)


def _clones(settings: StackSettings) -> tuple[HostJob, ...]:
    """Return the job that closes clones of the database; only `local` has them."""
    if settings.platform != "local":
        return ()
    job = HostJob(
        name="clones",
        description="End of clones that are open for a day, and of what killed restores left",
        command=("backup", "flashback", "close", "--expired"),
        cron=settings.schedule.clones,
        timeout=600,
    )
    return (job,)


def _sample(settings: StackSettings) -> tuple[HostJob, ...]:
    """Return the job of the masked sample; none if the settings name no source."""
    sample = settings.sample
    if sample is None or sample.source is None:
        return ()
    job = HostJob(
        name="data-sample",
        description="Masked sample of another database's traces",
        command=("data", "sample", "--from", sample.source, "--fraction", f"{sample.fraction:g}"),
        cron=sample.cron,
        timeout=12 * HOUR,
    )
    return (job,)
