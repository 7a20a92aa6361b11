"""Saying what `up` would do, as far as it can be known: by the program and the stack's state, or by the program alone.

Owns the choice between the two and the migrations that the plan's `Schema` would apply. Showing it is the command's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.engines.embedded import DiagnosticEvent, Event, Result, Step
from observatory.operations.bootstrap import OperationError, engine_options, make_state, state_options
from observatory.operations.engine_choice import EngineChoice, choose_engine
from observatory.progress import Reporter, silent, task
from observatory.settings import load_file
from observatory.workspace import Workspace

if TYPE_CHECKING:
    from observatory.database import Plan as DatabasePlan

SCHEMA_TYPE = "pulumi-python:dynamic/database:Schema"
FROM_PROGRAM = (
    "Planned from the program and its settings alone, as if nothing were there yet: no state, credentials or provider "
    "plugin was used, and what they would tell is [unknown]."
)


@dataclass(frozen=True, kw_only=True)
class PendingMigration:
    """A migration that `up` would apply: its file's name and text, and the edition of TimescaleDB that it is for."""

    file: str
    sql: str
    edition: Literal["apache", "community"] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `up` would do.

    Attributes:
        engine: Which one planned.
        offline: Whether by the program alone, as for a stack that has nothing yet.
        result: The steps with their changes, secrets and unknowns masked.
        notes: What the program and its providers had to say, and what was assumed.
        migrations: What the step on the `Schema` would apply, by version; of unknown edition: of both.
        schema: How it would go, as `deploy database --dry-run` says it; None where there is no database to ask yet.
    """

    engine: Literal["cli", "embedded"]
    offline: bool
    result: Result
    notes: tuple[str, ...] = ()
    migrations: tuple[PendingMigration, ...] = ()
    schema: DatabasePlan | None = None


def preview(workspace: Workspace, *, choice: EngineChoice = "auto", report: Reporter = silent) -> Plan:
    """Say what `up` would do, and make nothing: not even what a stack needs before its program can run.

    A stack that is not there yet, and one that only the CLI can run where there is none, is planned from the program
    alone. Only `choice="cli"` makes an empty stack, which the CLI cannot plan without.

    Raises:
        SettingsError: the stack's configuration is wrong.
        OperationError: the passphrase of an existing stack is gone, or there is no CLI where it was asked for.
        engine.EngineError: the program or a provider failed.
    """
    chosen, settings = choose_engine(choice), load_file(workspace.config_file)
    is_there = engine.exists(state_options(workspace))
    by_cli = chosen == "cli" and (is_there or choice == "cli" or settings.platform != "local")
    offline = not by_cli and (not is_there or settings.platform != "local")
    notes: list[str] = [FROM_PROGRAM] if offline else []

    def listen(event: Event) -> None:
        if isinstance(event, DiagnosticEvent) and event.severity in {"info", "warning"} and event.message.strip():
            notes.append(event.message.strip())

    with task(report, "preview"):
        if by_cli:
            make_state(workspace)
            result = automation.preview(engine_options(workspace), on_event=listen)
        elif offline:
            result = engine.plan_offline(state_options(workspace), on_event=listen)
        else:
            result = engine.preview(engine_options(workspace), on_event=listen)
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


def _pending(workspace: Workspace, result: Result) -> tuple[PendingMigration, ...]:
    """Return what the plan's step on the schema would apply, by the ledger as the last `up` left it."""
    step = next((step for step in result.steps if is_schema(step)), None)
    if step is None or step.operation not in {"create", "update", "replace"}:
        return ()
    from observatory.database import read_migrations  # noqa: PLC0415 - not where nothing is pending

    known = _properties(workspace, step)
    applied, target = {str(label).split()[0] for label in known.get("applied") or ()}, known.get("target")
    return tuple(
        PendingMigration(file=migration.file, sql=migration.sql, edition=migration.variant)
        for migration in read_migrations(workspace.migrations)
        if migration.path.stem not in applied
        and (target is None or migration.version <= target)
        and migration.variant in {None, known.get("edition") or migration.variant}
    )


def _schema_plan(workspace: Workspace, notes: list[str], report: Reporter) -> DatabasePlan | None:
    from observatory.database.errors import DatabaseError  # noqa: PLC0415 - not where nothing is pending
    from observatory.operations.database import plan_database  # noqa: PLC0415 - which knows this module

    try:
        return plan_database(workspace, report=report)
    except OperationError:
        return None  # the stack has no database yet
    except DatabaseError as error:
        notes.append(f"locks, backup and way back of the pending migrations are not known: {error}")
        return None


def is_schema(step: Step) -> bool:
    """Tell whether a step is on the resource that applies migrations."""
    return step.type == SCHEMA_TYPE


def _properties(workspace: Workspace, step: Step) -> Mapping[str, Any]:
    """Return what is known of the schema: what the last `up` left, and what the plan changes of it."""
    options = state_options(workspace)
    records = engine.resources(options) if engine.exists(options) else ()
    before = next((record.outputs for record in records if record.urn == step.urn), {})
    return {**before, **{change.path: change.new for change in step.changes}}
