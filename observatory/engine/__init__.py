"""A small embedded Pulumi engine: runs a Pulumi Python program without the CLI, on the CLI's own state.

The package owns planning and performing steps for dynamic resources, and the ``file://`` backend. It knows nothing of
what the resources are. See docs/engine.md for what it supports, what it refuses, and how to move to the CLI and back.
"""

from observatory.engine.errors import (
    INSTALL_URL,
    ConfigError,
    EngineError,
    Interrupted,
    LockedError,
    PassphraseError,
    ProgramError,
    StateError,
    StepFailed,
    UnsupportedError,
)
from observatory.engine.plan import DiagnosticEvent, Event, OnEvent, Result, Step, StepEvent
from observatory.engine.run import (
    ResourceRecord,
    StackOptions,
    clear_locks,
    destroy,
    exists,
    init,
    locked,
    outputs,
    plan_offline,
    preview,
    refresh,
    remove,
    resources,
    up,
)
from observatory.engine.values import PropertyChange, differences

__all__ = [
    "INSTALL_URL",
    "ConfigError",
    "DiagnosticEvent",
    "EngineError",
    "Event",
    "Interrupted",
    "LockedError",
    "OnEvent",
    "PassphraseError",
    "ProgramError",
    "PropertyChange",
    "ResourceRecord",
    "Result",
    "StackOptions",
    "StateError",
    "Step",
    "StepEvent",
    "StepFailed",
    "UnsupportedError",
    "clear_locks",
    "destroy",
    "differences",
    "exists",
    "init",
    "locked",
    "outputs",
    "plan_offline",
    "preview",
    "refresh",
    "remove",
    "resources",
    "up",
]
