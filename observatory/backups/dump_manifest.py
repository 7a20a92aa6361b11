"""The manifest of a dump: what it contains, of which versions, and the number of rows of every table and chunk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from observatory.backups.tool import BackupError
from observatory.database.migrations.files import Edition
from observatory.errors import REFUSED


class DumpError(BackupError):
    """A dump could not be made or restored; no earlier file and no existing database was changed."""


class DumpRefusedError(DumpError):
    """A dump was not begun, or its file does not fit; nothing was changed."""

    exit_code = REFUSED


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class DumpedFile(_Part):
    """Size and SHA-256 of a file of the dump."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Membership(_Part):
    """The membership of a role in another one, with its options."""

    role: str
    admin: bool
    inherit: bool
    set: bool


class Role(_Part):
    """A role that owns or may use objects; its password has the `verifier`, and ends at `valid_until`."""

    name: str
    attributes: str
    connection_limit: int
    verifier: str | None
    valid_until: str | None = None
    settings: tuple[str, ...]
    member_of: tuple[Membership, ...]

    @field_validator("member_of", mode="before")
    @classmethod
    def _with_options(cls, given: Any, info: ValidationInfo) -> Any:
        """Give the roles of earlier dumps, which have only their names, the options of a plain GRANT."""
        options = {"admin": False, "inherit": "NOINHERIT" not in info.data.get("attributes", ""), "set": True}
        return [{"role": each, **options} if isinstance(each, str) else each for each in given]


class Setting(_Part):
    """A setting of the database, or of a role in it."""

    role: str | None
    name: str
    value: str


class Grant(_Part):
    """A privilege on the database; no grantee is PUBLIC."""

    privilege: str
    grantee: str | None
    grantable: bool


class CronJob(_Part):
    """A job of pg_cron."""

    name: str | None
    schedule: str
    command: str
    username: str
    active: bool


class Rows(_Part):
    """Numbers of rows, by `schema.table` as PostgreSQL quotes it.

    Attributes:
        stored: in each table and each chunk itself; a compressed chunk counts its batches.
        hypertables: that each hypertable returns, so that its chunks are found through the catalogue.
    """

    stored: Mapping[str, int]
    hypertables: Mapping[str, int]

    def difference(self, restored: Rows) -> list[str]:
        """Return a line for each number that differs from the restored one."""
        pairs = ((self.stored, restored.stored, "rows stored"), (self.hypertables, restored.hypertables, "rows"))
        return [
            f"{name}: {before.get(name, 'no')} {unit} in the dump, {after.get(name, 'no')} restored"
            for before, after, unit in pairs
            for name in sorted({*before, *after})
            if before.get(name) != after.get(name)
        ]


class Manifest(_Part):
    """What a dump contains; all of it is from one snapshot.

    Attributes:
        format: of the dump's file.
        created: when the snapshot was taken.
        lsn: the WAL position then.
        postgresql: the server's major version.
        timescaledb: the version of the extension.
        edition: of TimescaleDB.
        schema_version: the newest applied migration, None without a ledger.
        migrations: the numbers of all applied migrations.
        database: its name.
        owner: of the database.
        database_bytes: its size on disk, with its indexes.
        settings: of the database, and of roles in it.
        grants: privileges on the database.
        extensions: their versions by name.
        roles: that the objects belong to or are granted to.
        cron_jobs: of pg_cron, which runs in one database of a server only.
        rows: of every table and chunk.
        files: of the dump, by name.
    """

    format: Literal[1] = 1
    created: datetime
    lsn: str
    postgresql: int
    timescaledb: str
    edition: Edition
    schema_version: int | None
    migrations: tuple[int, ...]
    database: str
    owner: str
    database_bytes: int
    settings: tuple[Setting, ...]
    grants: tuple[Grant, ...]
    extensions: Mapping[str, str]
    roles: tuple[Role, ...]
    cron_jobs: tuple[CronJob, ...]
    rows: Rows
    files: Mapping[str, DumpedFile]

    @property
    def unpacked_bytes(self) -> int:
        """The size of the decrypted files."""
        return sum(each.bytes for each in self.files.values())

    def check_schema(self, known: Collection[int]) -> None:
        """Check that this program has every migration of the dump.

        Raises:
            DumpRefusedError: it lacks one.
        """
        if newer := sorted(set(self.migrations) - set(known)):
            raise DumpRefusedError(
                f"the dump has schema {self.schema_version}, and this checkout lacks its migrations "
                f"{', '.join(map(str, newer))}",
                remedy="Restore it with the version of this program that made it, or a newer one.",
            )

    def as_json(self) -> dict[str, Any]:
        """Return what a reader needs of it as a plain mapping; without passwords' verifiers."""
        return self.model_dump(mode="json", exclude={"roles", "files", "cron_jobs", "grants", "settings"})
