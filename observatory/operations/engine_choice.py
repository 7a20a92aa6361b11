"""Which engine runs a stack, and what each of them can do."""

from __future__ import annotations

from typing import Any, Literal

from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.errors import REFUSED
from observatory.operations.bootstrap import OperationError
from observatory.settings import StackSettings
from observatory.workspace import Workspace

EngineChoice = Literal["auto", "cli", "embedded"]


class NeedsCliError(OperationError):
    """Only the Pulumi CLI can do this; nothing was changed."""

    exit_code = REFUSED


def choose_engine(choice: EngineChoice) -> Literal["cli", "embedded"]:
    """Return the engine to run with: the CLI where there is one, unless told otherwise.

    Raises:
        OperationError: the CLI is wanted and not on PATH.
    """
    if choice == "cli" and not automation.find_cli():
        raise OperationError("no `pulumi` on PATH; install the Pulumi CLI or use --engine embedded")
    if choice == "auto":
        return "cli" if automation.find_cli() else "embedded"
    return choice


def engine_for(
    workspace: Workspace, settings: StackSettings, choice: EngineChoice, *, operation: str
) -> Literal["cli", "embedded"]:
    """Return the engine that changes a stack.

    Raises:
        NeedsCliError: the stack's resources need provider plugins, and the embedded engine was chosen.
        OperationError: the CLI is wanted and not on PATH.
    """
    chosen = choose_engine(choice)
    if chosen == "embedded" and settings.platform != "local":
        there = "and leave --engine embedded out" if automation.find_cli() else f"install it ({engine.INSTALL_URL})"
        raise NeedsCliError(
            f"the embedded engine only plans {workspace.stack!r}: its resources need provider plugins, which the "
            f"Pulumi CLI runs. Nothing was changed. To go on: {there}, then run "
            f"`observatory {operation} -e {workspace.stack}`; `observatory preview -e {workspace.stack}` works without"
        )
    return chosen


def module_of(chosen: Literal["cli", "embedded"]) -> Any:
    """Return the module that runs the stack; both offer preview, up and destroy."""
    return automation if chosen == "cli" else engine
