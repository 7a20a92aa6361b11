"""Valkey: the cache of the service's reads. It is not persistent, because the database has all its data."""

from __future__ import annotations

import hashlib

from observatory.nodes.unit import Paths, TcpReady, Unit, render
from observatory.settings import LocalSettings

EXPORTER_USER = "exporter"
EXPORTER_COMMANDS = ("ping", "info", "latency|latest", "latency|histogram", "slowlog|len", "client|setname")


def password_file(paths: Paths) -> str:
    """Return the path of the configuration file with the password."""
    return f"{paths.config}/valkey/password.conf"


def password_lines(password: str, exporter_password: str) -> str:
    """Return the configuration that sets the service's password, and the user of the exporter.

    The exporter's user may run only commands that report statistics, and reads no key. `slowlog get` and `config get`
    are not among them: they return cached prompts and the password.
    """
    digest = hashlib.sha256(exporter_password.encode()).hexdigest()
    allowed = " ".join(f"+{command}" for command in EXPORTER_COMMANDS)
    return f"requirepass {password}\nuser {EXPORTER_USER} on #{digest} resetkeys resetchannels nocommands {allowed}\n"


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
