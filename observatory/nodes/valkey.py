"""Valkey: the cache of what the service reads. It holds nothing that is not in the database, so nothing is kept."""

from __future__ import annotations

from observatory.nodes.unit import Paths, TcpReady, Unit, render
from observatory.settings import LocalSettings


def password_file(paths: Paths) -> str:
    """Return the path of the part of the configuration that holds the password."""
    return f"{paths.config}/valkey/password.conf"


def password_line(password: str) -> str:
    """Return the configuration that sets the password."""
    return f"requirepass {password}\n"


def valkey(settings: LocalSettings, paths: Paths) -> Unit:
    """Return the cache of this node, bounded in memory, evicting what was used longest ago."""
    port = settings.ports.valkey
    file = f"{paths.config}/valkey/valkey.conf"
    config = render("valkey.conf.j2", port=port, memory_mb=settings.cache.memory_mb, password_file=password_file(paths))
    return Unit(
        name="valkey",
        command=("/usr/bin/valkey-server", file),
        ready=TcpReady(port=port),
        priority=25,
        ports={"ports.valkey": port},
        files={file: config},
    )
