"""Valkey: the cache of the service's reads. It is not persistent, because the database has all its data."""

from __future__ import annotations

from observatory.nodes.unit import Paths, TcpReady, Unit, render
from observatory.settings import LocalSettings


def password_file(paths: Paths) -> str:
    """Return the path of the configuration file with the password."""
    return f"{paths.config}/valkey/password.conf"


def password_line(password: str) -> str:
    """Return the configuration that sets the password."""
    return f"requirepass {password}\n"


def valkey(settings: LocalSettings, paths: Paths) -> Unit:
    """Return the cache of this node, with a memory limit and least-recently-used eviction."""
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
