"""Previewing what `up` would change, from the program and the stack's state, or from the program alone.

Owns the choice between the two, and the migrations that the plan's `Schema` would apply. The command prints the plan.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.engines.embedded import DiagnosticEvent, Event, Result, StackOptions, Step
from observatory.platforms import open_platform
from observatory.platforms.engine_choice import choose_engine
from observatory.platforms.errors import OperationError
from observatory.platforms.platform import EngineChoice, EngineName, Platform
from observatory.platforms.stack_state import SCHEMA_TYPE, engine_options, state_options
from observatory.progress import Reporter, silent, task
from observatory.settings import check_secret_files
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Migration
    from observatory.database import Plan as DatabasePlan

FROM_PROGRAM = (
    "Planned from the program and its settings alone, as for a new stack: no state, credentials or provider plugin was "
    "used, and values that come from them are [unknown]."
)


@dataclass(frozen=True, kw_only=True)
class PendingMigration:
    """A migration that `up` would apply: name and text of its file, and the edition of TimescaleDB that it needs."""

    file: str
    sql: str
    edition: Literal["apache", "community"] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `up` would change.

    Attributes:
        engine: the engine that planned.
        offline: whether the plan is from the program alone, as for a new stack.
        result: the steps with their changes, secrets and unknowns masked.
        notes: messages of the program and its providers, and assumptions.
        migrations: those that the step on the `Schema` would apply, by version; those of both editions where the
            edition is unknown.
        schema: the plan of `deploy database --dry-run`; None where there is no database yet.
    """

    engine: EngineName
    offline: bool
    result: Result
    notes: tuple[str, ...] = ()
    migrations: tuple[PendingMigration, ...] = ()
    schema: DatabasePlan | None = None


def preview(workspace: Workspace, *, choice: EngineChoice = "auto", report: Reporter = silent) -> Plan:
    """Return what `up` would change, and create nothing, not even what a stack needs before its program can run.

    A new stack, and one that only the CLI can run where there is no CLI, is planned from the program alone. With
    `choice="cli"` the CLI plans a new stack in a backend of its own, which is removed.

    Raises:
        SettingsError: the stack's configuration is wrong, or a file of a secret that it names is missing.
        OperationError: the passphrase of an existing stack is missing, the CLI was chosen and is not installed, or the
            settings have another name for the database than the stack.
        engine.EngineError: the program or a provider failed.
    """
    chosen, platform = choose_engine(choice), open_platform(workspace)
    check_secret_files(workspace.config_file, platform.settings)
    exists = engine.exists(state_options(workspace))
    by_cli = chosen == "cli" and (exists or choice == "cli")
    offline = not by_cli and (not exists or platform.needs_plugins)
    if exists and not offline:
        from observatory.operations.dropped_database import check_name  # noqa: PLC0415 - psycopg only where it is used

        check_name(platform)
    notes: list[str] = [FROM_PROGRAM] if offline else []

    def listen(event: Event) -> None:
        if isinstance(event, DiagnosticEvent) and event.severity in {"info", "warning"} and event.message.strip():
            notes.append(event.message.strip())

    with task(report, "preview"):
        if by_cli:
            with _state_to_plan_with(platform) as options:
                result = automation.preview(options, on_event=listen)
        elif offline:
            result = engine.plan_offline(state_options(workspace), on_event=listen)
        else:
            result = engine.preview(engine_options(platform), on_event=listen)
        migrations = _pending(workspace, result)
    schema = _schema_plan(workspace, notes, report) if migrations and not offline else None
    return Plan(
        engine="cli" if by_cli else "embedded",
        offline=offline,
        result=result,
        notes=tuple(dict.fromkeys(notes)),
        migrations=migrations,
        schema=schema,
    )


@contextmanager
def _state_to_plan_with(platform: Platform) -> Iterator[StackOptions]:
    """Yield the options of the stack, or of an empty one in a temporary backend where it does not exist."""
    if engine.exists(state_options(platform.workspace)):
        yield engine_options(platform)
        return
    passphrase = platform.workspace.passphrase_file
    with tempfile.TemporaryDirectory(prefix="observatory-preview-") as directory:
        yield replace(
            state_options(platform.workspace),
            backend=Path(directory) / "backend",
            passphrase=passphrase.read_text() if passphrase.exists() else secrets.token_urlsafe(),
            plugins=platform.needs_plugins,
        )


def _pending(workspace: Workspace, result: Result) -> tuple[PendingMigration, ...]:
    """Return what the plan's step on the schema would apply, by the ledger of the last `up`."""
    step = next((step for step in result.steps if is_schema(step)), None)
    if step is None or step.operation not in {"create", "update", "replace"}:
        return ()
    from observatory.database import read_migrations, read_repeatables  # noqa: PLC0415 - not where nothing is pending

    properties = _properties(workspace, step)
    labels = {str(label) for label in properties.get("applied") or ()}
    applied, target = {label.split()[0] for label in labels}, properties.get("target")
    return tuple(
        PendingMigration(file=migration.file, sql=migration.sql, edition=migration.variant)
        for migration in (*read_migrations(workspace.migrations), *read_repeatables(workspace.migrations))
        if (migration.path.stem not in applied if migration.version else not _is_current(migration, labels))
        and (target is None or migration.version <= target)
        and migration.variant in {None, properties.get("edition") or migration.variant}
    )


def _is_current(migration: Migration, labels: Iterable[str]) -> bool:
    """Return whether a repeatable migration was applied as it is; labels have the start of its hash."""
    return any(f"{migration.path.stem} {migration.sha256}".startswith(label) for label in labels)


def _schema_plan(workspace: Workspace, notes: list[str], report: Reporter) -> DatabasePlan | None:
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - not where nothing is pending
    from observatory.operations.database import plan_database  # noqa: PLC0415 - psycopg only where it is used

    try:
        return plan_database(workspace, report=report)
    except OperationError:
        return None  # the stack has no database yet
    except DatabaseError as error:
        notes.append(f"locks, backup and rollback of the pending migrations are unknown: {error}")
        return None


def is_schema(step: Step) -> bool:
    """Return whether a step is on the resource that applies migrations."""
    return step.type == SCHEMA_TYPE


def _properties(workspace: Workspace, step: Step) -> Mapping[str, Any]:
    """Return the known properties of the schema: the outputs of the last `up` with the changes of the plan."""
    options = state_options(workspace)
    records = engine.resources(options) if engine.exists(options) else ()
    before = next((record.outputs for record in records if record.urn == step.urn), {})
    return {**before, **{change.path: change.new for change in step.changes}}
