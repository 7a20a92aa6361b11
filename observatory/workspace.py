"""The paths and documents of a checkout. Everything that the program creates is below `.observatory`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from observatory.delivery.approvals import FileApprovals
from observatory.delivery.releases import ReleaseStore
from observatory.documents.logins import AccessStore
from observatory.documents.rollout import FileRolloutStore
from observatory.runtime import Progress, Sandbox, ensure_rootfs, rootfs_path


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A checkout and one stack of it."""

    root: Path
    stack: str

    @property
    def directory(self) -> Path:
        """The directory of all created files; it may be removed when no stack exists."""
        return self.root / ".observatory"

    @property
    def backend(self) -> Path:
        """The `file://` backend, shared by both engines."""
        return self.directory / "backend"

    @property
    def passphrase_file(self) -> Path:
        """The passphrase of the stack's secrets, created by the first `up`."""
        return self.directory / "passphrase"

    @property
    def home(self) -> Path:
        """The directory of the `local` stack: data, configuration, sockets, logs."""
        return self.directory / "stacks" / self.stack

    @property
    def discarded(self) -> list[Path]:
        """Homes that `down` has given up but not yet removed; while there is one, the stack counts as removed."""
        return sorted(self.home.parent.glob(f"{_discarded_prefix(self.stack)}*"))

    def discard_home(self) -> None:
        """Give the home up with all its data in one step; after that an interruption leaves only a cleanup."""
        if self.home.exists():
            self.home.rename(self.home.with_name(f"{_discarded_prefix(self.stack)}{time.time_ns()}"))

    @property
    def demonstrated(self) -> Path:
        """A file that exists once the first traces were written and read through the stack."""
        return self.home / "demonstrated"

    @property
    def cache(self) -> Path:
        """The root filesystem and the tools that build it; kept by `down`."""
        return self.directory / "cache"

    @property
    def rootfs(self) -> Path:
        """The path of the `local` stack's root filesystem; it may not exist yet."""
        return rootfs_path(self.cache, _packages())

    def ensure_rootfs(self, *, progress: Progress = lambda _message, _fraction: None) -> Path:
        """Build the root filesystem where it is missing, and return it; see `observatory.runtime.ensure_rootfs`."""
        return ensure_rootfs(self.cache, _packages(), progress=progress)

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox that the daemons of the `local` stack run in."""
        return Sandbox(self.home, self.rootfs)

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
    def approvals(self) -> FileApprovals:
        """The approvals of versions for the stack."""
        return FileApprovals(self.releases.directory / "approvals" / self.stack)

    @property
    def signing_key_file(self) -> Path:
        """The checkout's private key for releases that it builds, created by the first `up` or `release sign`."""
        return self.directory / "signing-key.pem"

    @property
    def rollout(self) -> FileRolloutStore:
        """The store of the stack's rollout document."""
        return FileRolloutStore(self.directory / "rollout" / f"{self.stack}.json")

    @property
    def rollout_documents(self) -> list[Path]:
        """The rollout documents of all stacks of the checkout."""
        return sorted((self.directory / "rollout").glob("*.json"))

    @property
    def access(self) -> AccessStore:
        """The store of the stack's database logins, with the age of their passwords."""
        return AccessStore(self.directory / "access" / f"{self.stack}.json")

    @property
    def journal(self) -> Path:
        """The journal of deliveries, a JSON object per line; `down` keeps it."""
        return self.directory / "rollout" / f"{self.stack}.journal.jsonl"


def console_links(workspace: Workspace) -> Path:
    """Return the directory of the console's links that were not opened yet; outside of what the daemons can read."""
    return workspace.directory / "console" / workspace.stack


def _discarded_prefix(stack: str) -> str:
    return f".{stack}.removed-"


def _packages() -> tuple[str, ...]:
    from observatory.nodes.daemons import packages  # noqa: PLC0415 - only where a sandbox is used

    return packages("local")
