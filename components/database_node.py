"""What providers do on the machine of a database: backups, and new connections of its pooler.

Their properties name the sandbox of a local machine (`backup_home`, `backup_rootfs`), how old a backup may be that is
used instead of a new one (`backup_reuse_minutes`), how old the state may be that the last restore drill has proven
(`drill_days`) with the private key of its receipts (`drill_key_file`), and the port of its pgBouncer (`pooler_port`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observatory.backups.receipts import DrillRequirement
    from observatory.database import Backup
    from observatory.runtime import Sandbox


def backup_of(props: Mapping[str, Any]) -> Backup | None:
    """Return the backup that runs before a change; None where the database runs on another machine."""
    sandbox = _sandbox(props)
    if sandbox is None:
        return None
    from observatory.backups.migration_backup import MigrationBackup  # noqa: PLC0415 - only where something is changed

    return MigrationBackup(
        sandbox, reuse_minutes=int(props.get("backup_reuse_minutes") or 0), required=_required_drill(sandbox, props)
    )


def _required_drill(sandbox: Sandbox, props: Mapping[str, Any]) -> DrillRequirement | None:
    """Return which receipt of a restore drill migrations need; None where none is needed."""
    days, key_file = int(props.get("drill_days") or 0), props.get("drill_key_file")
    if not days or not key_file:
        return None
    from observatory.backups.receipts import DrillRequirement  # noqa: PLC0415 - only where something is changed

    return DrillRequirement(days=days, stack=sandbox.home.name, key_file=Path(key_file))


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
