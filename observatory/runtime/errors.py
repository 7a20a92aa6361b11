"""Errors of the local runtime: each message names the cause, the place and the remedy."""

from __future__ import annotations

from observatory.errors import REFUSED, ObservatoryError


class RuntimeFault(ObservatoryError):  # noqa: N818 - RuntimeError is Python's own
    """Base of every error that the local runtime raises."""


class RootfsError(RuntimeFault):
    """The root filesystem could not be built, or the given one is not usable."""


class SandboxUnavailable(RuntimeFault):
    """This kernel or container refuses a sandbox, both with user namespaces and as root."""


class SandboxError(RuntimeFault):
    """The sandbox did not start or stop, or its supervisor refused a call or does not answer."""


class PortInUse(RuntimeFault):
    """A port that the stack needs is held by another process."""

    exit_code = REFUSED


class DaemonFailed(RuntimeFault):
    """A daemon ended, or did not become ready; the message ends with the last lines of its log."""


class ConfigurationRefused(RuntimeFault):
    """A daemon refuses its new configuration; its files are again those of the running one."""
