"""Where things are in a checkout: everything that the program makes is below `.observatory`, and nothing else is."""

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
    def discarded(self) -> list[Path]:
        """Homes that `down` has given up and not yet removed whole; while there is one, the stack counts as removed."""
        return sorted(self.home.parent.glob(f"{self._discarded_prefix}*"))

    def discard_home(self) -> None:
        """Give the home up with all its data, in one step: what is interrupted later is only cleaning up."""
        if self.home.exists():
            self.home.rename(self.home.with_name(f"{self._discarded_prefix}{time.time_ns()}"))

    @property
    def _discarded_prefix(self) -> str:
        return f".{self.stack}.removed-"

    @property
    def demonstrated(self) -> Path:
        """Exists as soon as the first traces were sent through the stack and read back."""
        return self.home / "demonstrated"

    @property
    def cache(self) -> Path:
        """The root filesystem and the tools that build it; kept by `down`."""
        return self.directory / "cache"

    @property
    def rootfs(self) -> Path:
        """The root filesystem of the `local` stack, or where it will be."""
        return rootfs_path(self.cache, _packages())

    def ensure_rootfs(self, *, progress: Progress = lambda _message, _fraction: None) -> Path:
        """Return the root filesystem, after building what is missing; see `observatory.runtime.ensure_rootfs`."""
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
        """Approvals of versions for the stack."""
        return FileApprovals(self.releases.directory / "approvals" / self.stack)

    @property
    def signing_key_file(self) -> Path:
        """The private key by which this checkout signs what it builds itself, made at the first `up` or `build`."""
        return self.directory / "signing-key.pem"

    @property
    def rollout(self) -> FileRolloutStore:
        """What is live on the stack."""
        return FileRolloutStore(self.directory / "rollout" / f"{self.stack}.json")

    @property
    def rollout_documents(self) -> list[Path]:
        """The rollout documents of all stacks of the checkout."""
        return sorted((self.directory / "rollout").glob("*.json"))

    @property
    def access(self) -> AccessStore:
        """Which database logins are in use on the stack, and how old their passwords are."""
        return AccessStore(self.directory / "access" / f"{self.stack}.json")

    @property
    def journal(self) -> Path:
        """What deliveries did, a JSON object a line; it outlives the stack's data."""
        return self.directory / "rollout" / f"{self.stack}.journal.jsonl"


def _packages() -> tuple[str, ...]:
    from observatory.nodes.daemons import packages  # noqa: PLC0415 - only where a sandbox is used

    return packages("local")
