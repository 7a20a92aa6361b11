"""Backups of the `local` stack: the repositories' passphrases, the pgBackRest stanza and the first full backups.

WAL archiving needs the stanza. `pulumi destroy` keeps the stack's files, so the next `up` finds repositories: each
keeps its passphrase.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider, UpdateResult
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from components.dynamic import without_provider
from components.local.machine import Machine, sandbox_of
from components.secrets import PASSWORD_BYTES
from observatory.backups.pgbackrest import PgBackRest
from observatory.backups.repository import check_repositories
from observatory.backups.tool import BackupRunningError, BackupType
from observatory.nodes import Paths
from observatory.nodes.host_jobs import BACKUP_JOBS
from observatory.nodes.pgbackrest import REPOSITORIES, cipher_file, outside_repository, passphrase_in, repository
from observatory.runtime import Sandbox, mounts
from observatory.scheduling.records import RecordStore

FIRST_BACKUP_SECONDS = 600
# A pgBackRest process of a killed command may still run for a moment.
_after_others = retry(
    retry=retry_if_exception_type(BackupRunningError),
    wait=wait_fixed(0.5),
    stop=stop_after_delay(FIRST_BACKUP_SECONDS),
    reraise=True,
)


@dataclass(frozen=True, kw_only=True)
class BackupsArgs:
    """The machine of the database, and the resources that a backup depends on."""

    machine: Machine
    after: tuple[pulumi.Resource, ...]


class Backups(pulumi.ComponentResource):
    """The backup repositories. Output: `stores`, their addresses. Other backups depend on `ready`."""

    def __init__(self, name: str, args: BackupsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Backups", name, None, opts)
        options = pulumi.ResourceOptions(parent=self, depends_on=list(args.after), deleted_with=args.machine)
        self.ready: tuple[pulumi.Resource, ...] = (Stanza("stanza", machine=args.machine, opts=options),)
        self.stores = [self._store(args.machine, number) for number in REPOSITORIES]
        self.register_outputs({"stores": self.stores})

    def _store(self, machine: Machine, number: int) -> pulumi.Output[str]:
        if outside := machine.args.repositories.get(number):
            return pulumi.Output.concat("file://", str(outside))
        return pulumi.Output.concat("file://", machine.home, repository(Paths(), number).removeprefix("/srv"))


class RepositoryPassphraseProvider(ResourceProvider):
    """Generates the passphrase of a backup repository, or adopts that of an existing one.

    Deleting the resource keeps both the repository and the file with its passphrase.
    """

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Return a new passphrase, or the one that encrypts the existing repository."""
        found = _passphrase_of_repository(sandbox_of(props), int(props.get("repository") or 1))
        value = found or secrets.token_urlsafe(PASSWORD_BYTES)
        return CreateResult(id_=secrets.token_hex(8), outs={**without_provider(props), "value": value})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report no change: the passphrase lives as long as the repository."""
        return DiffResult(changes=False)


def _passphrase_of_repository(sandbox: Sandbox, number: int) -> str | None:
    """Return the passphrase of a repository; None where there is no repository.

    Raises:
        RepositoryUnreadableError: there is a repository, but the file with its passphrase is gone.
    """
    tool = PgBackRest(sandbox)
    if not tool.exists(number):
        return None
    file = sandbox.host_path(cipher_file(Paths(), number))
    found = passphrase_in(file.read_text(encoding="utf-8"), number) if file.exists() else None
    if found is None:
        raise tool.unreadable(number, f"its passphrase is gone: {file} has none")
    return found


class RepositoryPassphrase(Resource, module="local", name="Password"):
    """The passphrase of a backup repository; `value` is secret. The type is that of the states of version 0.1."""

    value: pulumi.Output[str]

    def __init__(
        self, name: str, *, machine: Machine, repository: int = 1, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        props: dict[str, Any] = {"home": machine.home, "rootfs": machine.rootfs, "value": None}
        if repository > 1:  # that of version 0.1 has no number
            props["repository"] = repository
        secret = pulumi.ResourceOptions(additional_secret_outputs=["value"])
        super().__init__(RepositoryPassphraseProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


class StanzaProvider(ResourceProvider):
    """Creates the stanza and a full backup in each repository without any. Deleting the resource keeps them."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create the stanza and the backups that are missing."""
        _make_stanza(sandbox_of(props))
        return CreateResult(id_="observatory", outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Report a change when a repository is absent, and replace the stanza when the home changes."""
        replaces = ["home"] if _olds["home"] != _news["home"] else []
        tool = PgBackRest(sandbox_of(_news))
        absent = not all(tool.exists(number) for number in REPOSITORIES)
        return DiffResult(changes=bool(replaces) or absent, replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Create the repositories that are absent: new ones, and those that the operator has moved away."""
        _make_stanza(sandbox_of(_news))
        return UpdateResult(outs=without_provider(_news))


@_after_others
def _make_stanza(sandbox: Sandbox) -> None:
    tool = PgBackRest(sandbox)
    for number in REPOSITORIES:
        if outside_repository(number) not in mounts.recorded(sandbox.home):
            sandbox.make_directory(repository(Paths(), number))
    tool.prepare()
    for number in tool.repositories:
        if not tool.info(number):
            made = tool.backup(BackupType.FULL, repository=number, timeout=FIRST_BACKUP_SECONDS)
            RecordStore(sandbox=sandbox).record_success(BACKUP_JOBS["full"], started=made.started, ended=made.ended)
    check_repositories(sandbox)  # publishes the metrics that alerts need from the start


class Stanza(Resource, module="local", name="Stanza"):
    """The pgBackRest stanza of the database."""

    def __init__(self, name: str, *, machine: Machine, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(StanzaProvider(), name, {"home": machine.home, "rootfs": machine.rootfs}, opts)
