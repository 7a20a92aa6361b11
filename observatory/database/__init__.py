"""The database as operators see it: create it, bring its schema up, say where it stands. psycopg only, never Pulumi."""

import importlib
from typing import TYPE_CHECKING, Any

from observatory.database.api_keys import api_key_is_active, create_api_key, revoke_api_key
from observatory.database.backup import Backup, PlannedBackup, make_backup, plan_backup
from observatory.database.bootstrap import (
    ensure_database,
    ensure_provisioner,
    has_verifier,
)
from observatory.database.connection import connect
from observatory.database.deployment import Deployment, SchemaStatus, check_syntax, deploy, finish_deployment, status
from observatory.database.editions import upgrade_edition
from observatory.database.errors import (
    BackupFailedError,
    ContractRefusedError,
    DatabaseError,
    LockHeldError,
    LockTimeoutError,
    MigrationFileError,
    MigrationHistoryError,
    StatementFailedError,
    UnreachableError,
    UnsuitableServerError,
)
from observatory.database.files import Edition, Migration, load_migrations, read_migrations
from observatory.database.gaps import EditionGap, edition_gaps
from observatory.database.jobs import Job, schedule_jobs
from observatory.database.limits import Limits, RoleSettings, set_role_settings
from observatory.database.phases import Need, refuse_contracts
from observatory.database.privileges import Profile, grant_access
from observatory.database.sample import Sample, SampleError, copy_sample
from observatory.database.scram import scram_verifier
from observatory.database.throwaway import Installation, throwaway_server
from observatory.database.verification import Check, Verification, verify

if TYPE_CHECKING:
    from observatory.database.applying import Event, OnEvent
    from observatory.database.planning import Plan, plan
    from observatory.database.rehearsal import Throwaway

__all__ = [
    "Backup",
    "BackupFailedError",
    "Check",
    "ContractRefusedError",
    "DatabaseError",
    "Deployment",
    "Edition",
    "EditionGap",
    "Event",
    "Installation",
    "Job",
    "Limits",
    "LockHeldError",
    "LockTimeoutError",
    "Migration",
    "MigrationFileError",
    "MigrationHistoryError",
    "Need",
    "OnEvent",
    "Plan",
    "PlannedBackup",
    "Profile",
    "RoleSettings",
    "Sample",
    "SampleError",
    "SchemaStatus",
    "StatementFailedError",
    "Throwaway",
    "UnreachableError",
    "UnsuitableServerError",
    "Verification",
    "api_key_is_active",
    "check_syntax",
    "connect",
    "copy_sample",
    "create_api_key",
    "deploy",
    "edition_gaps",
    "ensure_database",
    "ensure_provisioner",
    "finish_deployment",
    "grant_access",
    "has_verifier",
    "load_migrations",
    "make_backup",
    "plan",
    "plan_backup",
    "read_migrations",
    "refuse_contracts",
    "revoke_api_key",
    "schedule_jobs",
    "scram_verifier",
    "set_role_settings",
    "status",
    "throwaway_server",
    "upgrade_edition",
    "verify",
]


_LAZY = {
    "Event": "applying",
    "OnEvent": "applying",
    "Plan": "planning",
    "Throwaway": "rehearsal",
    "plan": "planning",
}


def __getattr__(name: str) -> Any:
    """Import what brings the parser where it is asked for: work with nothing pending does not need it."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
