"""Where things are in a checkout: everything that the program makes is below `.observatory`, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from observatory.delivery.releases import ReleaseStore
from observatory.delivery.rollout import FileRolloutStore
from observatory.runtime import Sandbox, rootfs_path


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A checkout and one stack of it."""

    root: Path
    stack: str

    @property
    def directory(self) -> Path:
        """All that is made, and may be removed, below the checkout."""
        return self.root / ".observatory"

    @property
    def backend(self) -> Path:
        """The `file://` backend, shared by both engines."""
        return self.directory / "backend"

    @property
    def passphrase_file(self) -> Path:
        """The passphrase of the stack's secrets, made at the first `up`."""
        return self.directory / "passphrase"

    @property
    def home(self) -> Path:
        """What the `local` stack owns: data, configuration, sockets, logs."""
        return self.directory / "stacks" / self.stack

    @property
    def demonstrated(self) -> Path:
        """Exists as soon as the first traces were sent through the stack and read back."""
        return self.home / "demonstrated"

    @property
    def cache(self) -> Path:
        """The root filesystem and the tools that build it; kept by `down`."""
        return self.directory / "cache"

    @property
    def sandbox(self) -> Sandbox:
        """Where the daemons of the `local` stack run."""
        return Sandbox(self.home, rootfs_path(self.cache))

    @property
    def config_file(self) -> Path:
        """The stack's configuration."""
        return self.root / f"Pulumi.{self.stack}.yaml"

    @property
    def migrations(self) -> Path:
        """The migration files."""
        return self.root / "migrations"

    @property
    def releases(self) -> ReleaseStore:
        """The versions that may be deployed."""
        return ReleaseStore(self.directory / "releases")

    @property
    def rollout(self) -> FileRolloutStore:
        """What is live on the stack."""
        return FileRolloutStore(self.directory / "rollout" / f"{self.stack}.json")
