"""The public library: what `observatory` does, for CI to call without a command line.

Wires settings, engine, runtime and service build together. Nothing here prints; progress goes to a `Reporter`.
"""

from observatory.operations.backups import create_backup, list_backups
from observatory.operations.engines import EngineChoice, NeedsCliError, choose_engine
from observatory.operations.jobs import JobStatus, jobs, run_job, run_scheduler
from observatory.operations.logs import rotate_logs
from observatory.operations.plan import PendingMigration, Plan, preview
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
    "EngineChoice",
    "JobStatus",
    "NeedsCliError",
    "PendingMigration",
    "Plan",
    "Status",
    "UpResult",
    "choose_engine",
    "create_backup",
    "down",
    "environment",
    "jobs",
    "list_backups",
    "open_workspace",
    "outputs",
    "preview",
    "rotate_logs",
    "run_job",
    "run_scheduler",
    "status",
    "up",
]
