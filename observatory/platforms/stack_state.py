"""A stack's Pulumi state: the options that open it, its outputs, and the schema that the last `up` declared.

Reads the state without running the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from observatory.engines import embedded as engine
from observatory.engines.providers import IN_TREE
from observatory.engines.stack_settings import read_passphrase
from observatory.platforms.errors import OperationError, StackNotUpError
from observatory.platforms.platform import Platform
from observatory.workspace import Workspace

SCHEMA_TYPE = "pulumi-python:dynamic/database:Schema"


def state_options(workspace: Workspace) -> engine.StackOptions:
    """Return the options that read a stack's state without its secrets."""
    return _options(workspace, passphrase="")


def engine_options(platform: Platform) -> engine.StackOptions:
    """Return the options with which either engine runs a stack.

    Raises:
        OperationError: there is no passphrase.
    """
    try:
        passphrase = read_passphrase(platform.workspace.passphrase_file)
    except FileNotFoundError:
        raise missing_passphrase(platform.workspace) from None
    return replace(_options(platform.workspace, passphrase), plugins=platform.needs_plugins)


def missing_passphrase(workspace: Workspace) -> OperationError:
    """Return the error of a stack whose passphrase file is missing."""
    if not engine.exists(state_options(workspace)):
        return StackNotUpError(workspace.stack)
    return OperationError(
        f"{workspace.passphrase_file} is missing, and only it decrypts the secrets in the stack's state: restore the "
        "file from a copy, or remove the stack with all its data and backups with `observatory down`; to recover the "
        'data afterwards, first see "A database that does not start" in docs/backups.md'
    )


def outputs(platform: Platform, *, show_secrets: bool = False) -> Mapping[str, Any]:
    """Return the stack's outputs; empty where it was never up.

    Raises:
        OperationError: there is no passphrase for the secrets.
    """
    options = engine_options(platform) if show_secrets else state_options(platform.workspace)
    return engine.outputs(options, show_secrets=show_secrets)


def declared_schema(platform: Platform) -> Mapping[str, Any] | None:
    """Return the outputs of the stack's schema as its last `up` declared it; None where there is none yet."""
    secret = platform.schema_is_secret
    options = engine_options(platform) if secret else state_options(platform.workspace)
    records = engine.resources(options, show_secrets=secret) if engine.exists(options) else ()
    return next((record.outputs for record in records if record.type == SCHEMA_TYPE), None)


def _options(workspace: Workspace, passphrase: str) -> engine.StackOptions:
    return engine.StackOptions(
        cwd=workspace.root,
        stack=workspace.stack,
        backend=workspace.backend,
        passphrase=passphrase,
        passphrase_file=workspace.passphrase_file,
        packages=IN_TREE,
    )
