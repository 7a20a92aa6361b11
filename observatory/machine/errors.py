"""What can go wrong with the machine; each message names the cause, the place and the remedy."""


class RuntimeFault(Exception):  # noqa: N818 - RuntimeError is Python's own
    """Base of the runtime's errors."""


class RootfsError(RuntimeFault):
    """The root filesystem cannot be built or is not one."""


class SandboxUnavailable(RuntimeFault):
    """This machine does not let us make a sandbox, or it died at its start."""


class PortInUse(RuntimeFault):
    """A port of the stack belongs to somebody else."""


class DaemonFailed(RuntimeFault):
    """A daemon died, or did not become ready; the message ends with its last log lines."""
