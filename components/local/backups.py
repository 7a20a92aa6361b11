"""Backups of the `local` stack: the pgBackRest stanza and the first full backup, which WAL archiving needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi.dynamic import CreateResult, DiffResult, Resource, ResourceProvider
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from components.dynamic import without_provider
from components.local.machine import Machine, sandbox_of
from observatory.backups.pgbackrest import BackupRunningError, BackupType, create_backup, create_stanza, list_backups
from observatory.nodes import Paths
from observatory.nodes.pgbackrest import repository
from observatory.runtime import Sandbox

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
    """The backup repository. Output: `stores`, all repositories' addresses. Other backups depend on `ready`."""

    def __init__(self, name: str, args: BackupsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("observatory:local:Backups", name, None, opts)
        options = pulumi.ResourceOptions(parent=self, depends_on=list(args.after), deleted_with=args.machine)
        self.ready: tuple[pulumi.Resource, ...] = (Stanza("stanza", machine=args.machine, opts=options),)
        path = repository(Paths())
        self.stores = [args.machine.home.apply(lambda home: f"file://{home}{path.removeprefix('/srv')}")]
        self.register_outputs({"stores": self.stores})


class StanzaProvider(ResourceProvider):
    """Creates the stanza and a full backup if there is none yet. Deleting the resource keeps the backups."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Create the stanza and the backup if they are missing."""
        _make_stanza(sandbox_of(props))
        return CreateResult(id_="observatory", outs=without_provider(props))

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Replace the stanza when the home changes."""
        replaces = ["home"] if _olds["home"] != _news["home"] else []
        return DiffResult(changes=bool(replaces), replaces=replaces)


@_after_others
def _make_stanza(sandbox: Sandbox) -> None:
    create_stanza(sandbox)
    if not list_backups(sandbox):
        create_backup(sandbox, BackupType.FULL, timeout=FIRST_BACKUP_SECONDS)


class Stanza(Resource, module="local", name="Stanza"):
    """The pgBackRest stanza of the database."""

    def __init__(self, name: str, *, machine: Machine, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(StanzaProvider(), name, {"home": machine.home, "rootfs": machine.rootfs}, opts)
