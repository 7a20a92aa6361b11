"""Which engine runs a stack: the Pulumi CLI where it is installed, otherwise the embedded engine."""

from __future__ import annotations

from typing import Protocol

from observatory.engines import embedded
from observatory.engines.cli import automation
from observatory.engines.embedded import OnEvent, Result, StackOptions
from observatory.platforms.errors import NeedsCliError, OperationError
from observatory.platforms.platform import EngineChoice, EngineName, Platform


class Engine(Protocol):
    """The operations that both engines offer; see `observatory.engines.embedded` for the errors that they raise."""

    def preview(self, options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
        """Plan the changes that `up` would make."""

    def up(self, options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
        """Bring the stack to what the program declares."""

    def destroy(self, options: StackOptions, *, on_event: OnEvent | None = None) -> Result:
        """Delete all resources."""


def choose_engine(choice: EngineChoice) -> EngineName:
    """Return the engine to run with; `auto` is the CLI where it is on PATH.

    Raises:
        OperationError: `cli` was chosen and is not on PATH.
    """
    if choice == "cli" and not automation.find_cli():
        raise OperationError("no `pulumi` on PATH; install the Pulumi CLI or use --engine embedded")
    if choice == "auto":
        return "cli" if automation.find_cli() else "embedded"
    return choice


def choose_engine_to_change(platform: Platform, choice: EngineChoice, *, operation: str) -> EngineName:
    """Return the engine that changes a stack by `operation`, `up` or `down`.

    Raises:
        NeedsCliError: the stack's resources need provider plugins, and the embedded engine was chosen.
        OperationError: `cli` was chosen and is not on PATH.
    """
    chosen, stack = choose_engine(choice), platform.workspace.stack
    if chosen == "embedded" and platform.needs_plugins:
        remedy = "omit --engine embedded" if automation.find_cli() else f"install it ({embedded.INSTALL_URL})"
        raise NeedsCliError(
            f"the embedded engine only plans the stack {stack!r}: its resources need provider plugins, which the "
            f"Pulumi CLI runs. Nothing was changed. To continue, {remedy}, then run `observatory {operation} -e "
            f"{stack}`. `observatory preview -e {stack}` works without the CLI"
        )
    return chosen


def engine_of(name: EngineName) -> Engine:
    """Return an engine by its name."""
    return automation if name == "cli" else embedded
