"""How a command ends early: `signals` stop it, and `parallel` ends the work on several threads as one."""

from observatory.interruption.signals import (
    STOPPING,
    delayed_signals,
    handle_stop_signals,
    interrupt_on_signals,
    interruptible,
    stop_signals,
)

__all__ = [
    "STOPPING",
    "delayed_signals",
    "handle_stop_signals",
    "interrupt_on_signals",
    "interruptible",
    "stop_signals",
]
