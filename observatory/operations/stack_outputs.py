"""A stack's workspace, its outputs, and the environment of a plain `pulumi`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import observatory
from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.platforms import open_platform, stack_state
from observatory.platforms.errors import OperationError, StackNotUpError
from observatory.platforms.platform import Platform
from observatory.workspace import Workspace


def open_workspace(stack: str = "local", root: Path | None = None) -> Workspace:
    """Return a stack's workspace; `root` is the checkout, by default the one that contains this library.

    Raises:
        OperationError: there is no such stack.
    """
    root = root or Path(observatory.__file__).resolve().parent.parent
    workspace = Workspace(root=root, stack=stack)
    if not workspace.config_file.exists():
        stacks = ", ".join(sorted(file.name.split(".")[1] for file in root.glob("Pulumi.*.yaml"))) or "none"
        raise OperationError(f"no stack {stack!r}: {workspace.config_file.name} does not exist (stacks: {stacks})")
    return workspace


def outputs(workspace: Workspace, *, show_secrets: bool = False) -> Mapping[str, Any]:
    """Return the stack's outputs from its state, without running the program; empty where it was never up.

    Raises:
        OperationError: `show_secrets` is set and the passphrase is missing.
        engine.EngineError: the state cannot be read.
    """
    if show_secrets:
        return stack_state.outputs(open_platform(workspace), show_secrets=True)
    return engine.outputs(stack_state.state_options(workspace))


def required_outputs(platform: Platform, *, show_secrets: bool) -> Mapping[str, Any]:
    """Return the outputs of a stack that is up.

    Raises:
        StackNotUpError: it was never up.
    """
    if not stack_state.outputs(platform):
        raise StackNotUpError(platform.workspace.stack)
    return stack_state.outputs(platform, show_secrets=show_secrets)


def environment(workspace: Workspace) -> dict[str, str]:
    """Return the variables that a plain `pulumi` needs to work on the same state."""
    return {
        **automation.environment(workspace.backend, plugins=open_platform(workspace).needs_plugins),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(workspace.passphrase_file),
    }
