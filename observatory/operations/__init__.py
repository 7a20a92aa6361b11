"""The public library: what `observatory` does, for CI to call without a command line.

Wires settings, engine, runtime and service build together. Nothing here prints; progress goes to a `Reporter`.
"""

from observatory.operations.backups import create_backup, list_backups
from observatory.operations.data import copy_sample
from observatory.operations.database import (
    DEFAULT_RETRY,
    DatabaseDeployment,
    DatabaseTarget,
    back_up_database,
    database_target,
    deploy_database,
    plan_database,
    verify_database,
)
from observatory.operations.delivery import (
    control_rollout,
    deploy_application,
    roll_back_application,
)
from observatory.operations.engines import EngineChoice, NeedsCliError, choose_engine
from observatory.operations.jobs import JobStatus, jobs, run_job, run_scheduler
from observatory.operations.logins import PasswordStatus
from observatory.operations.logs import rotate_logs
from observatory.operations.plan import PendingMigration, Plan, preview
from observatory.operations.releases import KeptRelease, add_release, list_releases, sign_release
from observatory.operations.rotation import RotatedRole, rotate_passwords
from observatory.operations.silences import add_silence, end_silence, list_silences
from observatory.operations.stack import (
    Status,
    UpResult,
    down,
    environment,
    open_workspace,
    outputs,
    status,
    up,
)

__all__ = [
    "DEFAULT_RETRY",
    "DatabaseDeployment",
    "DatabaseTarget",
    "EngineChoice",
    "JobStatus",
    "KeptRelease",
    "NeedsCliError",
    "PasswordStatus",
    "PendingMigration",
    "Plan",
    "RotatedRole",
    "Status",
    "UpResult",
    "add_release",
    "add_silence",
    "back_up_database",
    "choose_engine",
    "control_rollout",
    "copy_sample",
    "create_backup",
    "database_target",
    "deploy_application",
    "deploy_database",
    "down",
    "end_silence",
    "environment",
    "jobs",
    "list_backups",
    "list_releases",
    "list_silences",
    "open_workspace",
    "outputs",
    "plan_database",
    "preview",
    "roll_back_application",
    "rotate_logs",
    "rotate_passwords",
    "run_job",
    "run_scheduler",
    "sign_release",
    "status",
    "up",
    "verify_database",
]
