"""What providers do on the machine of a database: backups, and new connections of its pooler.

Their properties name the sandbox of a local machine (`backup_home`, `backup_rootfs`), how old a backup may be that is
used instead of a new one (`backup_reuse_minutes`), and the port of its pgBouncer (`pooler_port`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observatory.database import Backup
    from observatory.runtime import Sandbox


def backup_of(props: Mapping[str, Any]) -> Backup | None:
    """Return the backup that runs before a change; None where the database runs on another machine."""
    sandbox = _sandbox(props)
    if sandbox is None:
        return None
    from observatory.backups.migration_backup import MigrationBackup  # noqa: PLC0415 - only where something is changed

    return MigrationBackup(sandbox, reuse_minutes=int(props.get("backup_reuse_minutes") or 0))


def reconnect_pooler(props: Mapping[str, Any]) -> None:
    """Let pgBouncer replace its connections, which are of the database before the change; print why it did not."""
    if not props.get("pooler_port"):
        return
    from observatory.nodes import Paths  # noqa: PLC0415 - only where something is changed
    from observatory.nodes.aws import pooler_warning  # noqa: PLC0415
    from observatory.nodes.pooler_console import reconnect  # noqa: PLC0415

    port, sandbox = int(props["pooler_port"]), _sandbox(props)  # numbers arrive as floats
    warning = reconnect(sandbox.run, Paths(), port, stack=sandbox.home.name) if sandbox else pooler_warning(port)
    if warning:
        sys.stderr.write(f"database: {warning}\n")


def _sandbox(props: Mapping[str, Any]) -> Sandbox | None:
    if not props.get("backup_home"):
        return None
    from observatory.runtime import Sandbox  # noqa: PLC0415 - only where something is changed

    return Sandbox(Path(props["backup_home"]), Path(props["backup_rootfs"]))
