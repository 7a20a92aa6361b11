"""The pgBouncers of a stack, which get new connections when its schema has changed."""

from __future__ import annotations

from observatory.nodes import Paths
from observatory.nodes.pooler_console import reconnect
from observatory.platforms.platform import Platform


def reconnect_poolers(platform: Platform) -> tuple[str, ...]:
    """Let every pgBouncer of the stack replace its connections; return a warning for each one that did not."""
    port, stack = platform.settings.ports.pgbouncer, platform.workspace.stack
    if platform.settings.platform == "local":
        warning = reconnect(platform.workspace.sandbox.run, Paths(), port, stack=stack)
    else:
        from observatory.nodes.aws import pooler_warning  # noqa: PLC0415 - only the chosen platform

        warning = pooler_warning(port)
    return (warning,) if warning else ()
