"""The cache of the `local` stack: Valkey."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from components.local.machine import Daemon, Machine
from components.secrets import Password
from observatory.nodes import Paths
from observatory.nodes.valkey import password_file, password_line, valkey
from observatory.settings import LocalSettings


@dataclass(frozen=True, kw_only=True)
class CacheArgs:
    """The machine of the cache, and its settings."""

    settings: LocalSettings
    machine: Machine


class Cache(pulumi.ComponentResource):
    """A read-through cache, which may be lost at any time. Output: `password` (secret)."""

    def __init__(self, name: str, args: CacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Cache", name, None, opts)
        paths = Paths()
        self.password = Password("cache-password", opts=pulumi.ResourceOptions(parent=self)).value
        daemon = Daemon(
            "valkey",
            machine=args.machine,
            unit=valkey(args.settings, paths),
            secret_files={password_file(paths): self.password.apply(password_line)},
            opts=pulumi.ResourceOptions(parent=self, deleted_with=args.machine),
        )
        self.ready: tuple[pulumi.Resource, ...] = (daemon,)
        self.register_outputs({"password": self.password})
