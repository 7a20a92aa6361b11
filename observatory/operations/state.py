"""What a stack says of itself without running: where it stands, its outputs, the environment of a plain `pulumi`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import observatory
from observatory.engines import embedded as engine
from observatory.engines.cli import automation
from observatory.operations.bootstrap import OperationError, engine_options, state_options
from observatory.operations.plan import SCHEMA_TYPE
from observatory.settings import load_file
from observatory.workspace import Workspace


def open_workspace(stack: str = "local", root: Path | None = None) -> Workspace:
    """Return a stack's workspace; `root` defaults to the checkout that this library stands in.

    Raises:
        OperationError: there is no such stack.
    """
    root = root or Path(observatory.__file__).resolve().parent.parent
    workspace = Workspace(root=root, stack=stack)
    if not workspace.config_file.exists():
        known = ", ".join(sorted(file.name.split(".")[1] for file in root.glob("Pulumi.*.yaml"))) or "none"
        raise OperationError(f"no stack {stack!r}: {workspace.config_file.name} does not exist (stacks here: {known})")
    return workspace


def outputs(workspace: Workspace, *, show_secrets: bool = False) -> Mapping[str, Any]:
    """Return the stack's outputs from its state, without running the program."""
    options = engine_options(workspace) if show_secrets else state_options(workspace)
    return engine.outputs(options, show_secrets=show_secrets)


def declared_schema(workspace: Workspace) -> Mapping[str, Any] | None:
    """Return the outputs of the stack's schema as its last `up` declared it, None where it has none yet."""
    remote = load_file(workspace.config_file).platform != "local"  # where its owner has a password, secret in the state
    options = engine_options(workspace) if remote else state_options(workspace)
    records = engine.resources(options, show_secrets=remote) if engine.exists(options) else ()
    return next((record.outputs for record in records if record.type == SCHEMA_TYPE), None)


def environment(workspace: Workspace) -> dict[str, str]:
    """Return what a plain `pulumi` needs in its environment."""
    return {
        **automation.environment(workspace.backend, plugins=load_file(workspace.config_file).platform != "local"),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(workspace.passphrase_file),
    }
