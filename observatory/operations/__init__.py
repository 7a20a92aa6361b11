"""The public library: what `observatory` does, for CI to call without a command line.

Wires settings, engine, runtime and service build together. Nothing here prints; progress goes to a `Reporter`.
"""

from observatory.operations.backups import create_backup, list_backups
from observatory.operations.stack import (
    EngineChoice,
    Status,
    UpResult,
    choose_engine,
    down,
    environment,
    open_workspace,
    outputs,
    preview,
    status,
    up,
)

__all__ = [
    "EngineChoice",
    "Status",
    "UpResult",
    "choose_engine",
    "create_backup",
    "down",
    "environment",
    "list_backups",
    "open_workspace",
    "outputs",
    "preview",
    "status",
    "up",
]
