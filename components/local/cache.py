"""The cache of the `local` stack: Valkey."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from components.local.machine import Daemon, Machine
from components.secrets import Password
from observatory.nodes import Paths
from observatory.nodes.valkey import password_file, password_lines, valkey
from observatory.settings import LocalSettings


@dataclass(frozen=True, kw_only=True)
class CacheArgs:
    """The machine of the cache, and its settings."""

    settings: LocalSettings
    machine: Machine


class Cache(pulumi.ComponentResource):
    """A read-through cache, which may be lost at any time. Outputs: `password`, `exporter_password` (both secret)."""

    def __init__(self, name: str, args: CacheArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Cache", name, None, opts)
        paths = Paths()
        mine = pulumi.ResourceOptions(parent=self)
        self.password = Password("cache-password", opts=mine).value
        self.exporter_password = Password("cache-exporter-password", opts=mine).value
        both = pulumi.Output.all(self.password, self.exporter_password)
        daemon = Daemon(
            "valkey",
            machine=args.machine,
            unit=valkey(args.settings, paths),
            secret_files={password_file(paths): both.apply(lambda passwords: password_lines(*passwords))},
            opts=pulumi.ResourceOptions(parent=self, deleted_with=args.machine),
        )
        self.ready: tuple[pulumi.Resource, ...] = (daemon,)
        self.register_outputs({"password": self.password})
