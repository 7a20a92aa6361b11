"""The schema of a database as a resource: a thin dynamic provider over `observatory.database`.

It backs up a database that has data, deploys the migrations, schedules their jobs, grants privileges and verifies the
database; a failed check is a failed step. Owns how a preview shows migrations and how drift of the ledger is detected.
`observatory.database` runs the migrations. Deleting the resource keeps the database: no data is ever dropped.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
from pulumi.dynamic import (
    CheckFailure,
    CheckResult,
    CreateResult,
    DiffResult,
    ReadResult,
    Resource,
    ResourceProvider,
    UpdateResult,
)

from components.database_node import backup_of, reconnect_pooler
from observatory import database
from observatory.database.errors import DatabaseDroppedError, NoSuchDatabaseError
from observatory.database.migrations.numbering import FIRST_OWN, version_in
from observatory.security.actor import actor

_INPUTS = ("conninfo", "directory", "migrations", "target", "roles", "backup_home", "backup_rootfs")
_DIGEST_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class SchemaArgs:
    """The arguments of a schema.

    Attributes:
        conninfo: libpq connection string as the role that owns the schema, direct and not through a pooler; kept
            secret when it has a password.
        migrations: directory of the migration files.
        target: highest version to apply; None is all.
        roles: roles that get privileges on the schema's relations, each with its profile.
        needs: the versions of the schema that the fleets' releases work with, as the fields of
            `observatory.database.SchemaRequirement`; a migration that would break one is refused.
        service_conninfo: direct connection string of the service's login, which verifies reads and writes after each
            deployment; None: these checks are unknown. Kept secret.
        backup_home: home of the sandbox whose pgBackRest makes a backup before migrations run on a database that has
            data; None: no backup is made.
        backup_rootfs: root filesystem of that sandbox.
        backup_reuse_minutes: a backup that is younger is used instead of a new one; 0: always a new one.
        drill_days: migrations of a database that has data need the receipt of a restore drill that has proven a state
            of the last so many days; 0: none is needed.
        drill_key_file: the private key that signs these receipts.
        pooler_port: port of the database's pgBouncer, which gets new connections when migrations have run: in that
            sandbox, otherwise on the database's machine, where only a warning can name it; None: there is none.
    """

    conninfo: pulumi.Input[str]
    migrations: Path
    target: int | None = None
    roles: Mapping[str, database.Profile] = field(default_factory=dict)
    needs: Sequence[tuple[str, str, int, int]] = ()
    service_conninfo: pulumi.Input[str] | None = None
    backup_home: pulumi.Input[str] | None = None
    backup_rootfs: pulumi.Input[str] | None = None
    backup_reuse_minutes: int = 0
    drill_days: int = 0
    drill_key_file: Path | None = None
    pooler_port: int | None = None


class SchemaProvider(ResourceProvider):
    """Applies migrations. Stateless, so that it is stored by reference."""

    serialize_as_secret_always = False

    def check(self, _olds: dict[str, Any], news: dict[str, Any]) -> CheckResult:
        """Report unusable files before anything runs; files that passed an earlier check are not parsed again."""
        try:
            fresh = [
                migration
                for migration in _read_all(Path(news["directory"]))
                if _label(migration.path.stem, migration.sha256) not in _olds.get("migrations", ())
            ]
            if fresh:
                database.check_syntax(fresh)  # loads PostgreSQL's parser, which takes a while
                _announce_refusal(_olds, news)
        except database.MigrationFileError as error:
            return CheckResult(inputs=news, failures=[CheckFailure("migrations", str(error))])
        return CheckResult(inputs=news, failures=[])

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> DiffResult:
        """Compare the ledger with the files; the path of the checkout is no difference."""
        if pulumi.contains_unknowns(_news.get("conninfo")) or _olds["conninfo"] != _news["conninfo"]:
            return DiffResult(changes=True)
        if _olds.get("roles") != _news.get("roles"):
            return DiffResult(changes=True)
        expected = _expected(_news, _olds["edition"], _olds["applied"])
        applied = _olds["applied"] if any(map(_is_repeatable, expected)) else _numbered(_olds["applied"])
        return DiffResult(changes=applied != expected)

    def create(self, props: dict[str, Any]) -> CreateResult:
        """Apply the pending migrations; adopt a database where none is pending."""
        return CreateResult(id_="schema", outs=_deploy(props))

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> UpdateResult:
        """Apply what is pending.

        Raises:
            DatabaseDroppedError: the database had migrations, and is gone or has none any more.
        """
        _check_kept(_olds, _news)
        return UpdateResult(outs=_deploy(_news))

    def read(self, id_: str, props: dict[str, Any]) -> ReadResult:
        """Report the ledger."""
        return ReadResult(id_=id_, outs=_outputs(props, database.status(props["conninfo"])))


class Schema(Resource, module="database", name="Schema"):
    """The migrations of a database.

    Attributes:
        version: highest migration that is completely applied.
        edition: of TimescaleDB, `apache` or `community`.
        applied: the ledger, as `NNN_name digest`.
    """

    version: pulumi.Output[int]
    edition: pulumi.Output[str]
    applied: pulumi.Output[list[str]]

    def __init__(self, name: str, args: SchemaArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        files = _read_all(args.migrations)
        given: pulumi.Output[str] = pulumi.Output.from_input(args.conninfo)
        conninfo: pulumi.Output[str] = given.apply(_secret_if_password)
        service = args.service_conninfo
        props = {
            "conninfo": conninfo,
            "directory": str(args.migrations.resolve()),
            "migrations": [_label(migration.path.stem, migration.sha256) for migration in files],
            "target": args.target,
            "roles": dict(args.roles),
            "needs": [list(need) for need in args.needs],
            "service_conninfo": None if service is None else pulumi.Output.secret(service),
            "backup_home": args.backup_home,
            "backup_rootfs": args.backup_rootfs,
            "backup_reuse_minutes": args.backup_reuse_minutes,
            "drill_days": args.drill_days,
            "drill_key_file": None if args.drill_key_file is None else str(args.drill_key_file),
            "pooler_port": args.pooler_port,
            "version": None,
            "edition": None,
            "applied": None,
        }
        super().__init__(SchemaProvider(), name, props, opts)


def _secret_if_password(conninfo: str) -> pulumi.Output[str]:
    return pulumi.Output.secret(conninfo) if database.has_password(conninfo) else pulumi.Output.from_input(conninfo)


def _label(stem: str, sha256: str) -> str:
    """Return a migration as a preview shows it: `004_name.apache 0123456789ab`."""
    return f"{stem} {sha256[:_DIGEST_LENGTH]}"


def _expected(props: dict[str, Any], edition: str, applied: Collection[str]) -> list[str]:
    """Return the labels of the migrations that a database of the edition must have."""
    labels = [label for label in props["migrations"] if _variant(label) in {"", edition}]
    numbered = _numbered(labels)
    expected = _up_to(props.get("target"), numbered, applied)
    return labels if expected == numbered else expected  # repeatable migrations may need the later ones


def _up_to(target: float | None, labels: list[str], applied: Collection[str]) -> list[str]:
    """Return the labels of the migrations up to the target; one of the product leaves own ones as they are."""
    if target is None:
        return labels
    own = applied if target < FIRST_OWN else ()
    return [each for each in labels if version_in(each) <= target or (version_in(each) >= FIRST_OWN and each in own)]


def _read_all(directory: Path) -> tuple[database.Migration, ...]:
    return (*database.read_migrations(directory), *database.read_repeatables(directory))


def _is_repeatable(label: str) -> bool:
    return label.startswith("R__")


def _numbered(labels: Sequence[str]) -> list[str]:
    return [label for label in labels if not _is_repeatable(label)]


def _variant(label: str) -> str:
    return label.split(maxsplit=1)[0].partition(".")[2]


def _check_kept(olds: Mapping[str, Any], news: Mapping[str, Any]) -> None:
    """Raise DatabaseDroppedError instead of filling an empty database, which would hide the loss."""
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - psycopg only where it is used

    from observatory.database.presence import has_ledger  # noqa: PLC0415

    name, former = (str(conninfo_to_dict(each["conninfo"]).get("dbname") or "") for each in (news, olds))
    if not olds.get("applied") or name != former:
        return
    try:
        if has_ledger(news["conninfo"]):
            return
    except NoSuchDatabaseError as error:
        raise DatabaseDroppedError(name) from error
    raise DatabaseDroppedError(name, empty=True)


def _deploy(props: dict[str, Any]) -> dict[str, Any]:
    target = None if props.get("target") is None else int(props["target"])  # numbers arrive as floats
    applying: list[str | None] = []

    def on_event(event: database.Event) -> None:
        if event.kind == "applying":
            applying.append(event.migration)
        _print_event(event)

    try:
        database.deploy(
            props["conninfo"],
            migrations=Path(props["directory"]),
            target=target,
            requirements=[
                database.SchemaRequirement(fleet, release, int(low), int(high))
                for fleet, release, low, high in props.get("needs") or ()
            ],
            backup=backup_of(props),
            actor=actor(),
            deployment_id=str(uuid.uuid4()),
            on_event=on_event,
        )
    finally:
        if applying:  # also after an error: earlier files stay applied
            reconnect_pooler(props)
    verification = database.finish_deployment(
        props["conninfo"],
        migrations=Path(props["directory"]),
        target=target,
        roles=props.get("roles", {}),
        service_conninfo=props.get("service_conninfo"),
        throwaway=_throwaway(props),
    )
    _report_problems(verification)
    for gap in database.edition_gaps(props["conninfo"]):
        if gap.replaced_by is None:
            sys.stderr.write(f"TimescaleDB's edition on this server has no {gap.feature}: {gap.consequence}\n")
    return _outputs(props, database.status(props["conninfo"]))


def _announce_refusal(olds: Mapping[str, Any], news: Mapping[str, Any]) -> None:
    """Print in a preview, too, that new migrations of an existing schema would be refused."""
    if not olds or not news.get("drill_days") or pulumi.contains_unknowns(news.get("backup_home")):
        return
    try:
        if backup := backup_of(news):
            backup.check_permitted()
    except database.DatabaseError as error:
        sys.stderr.write(f"schema: would be refused: {error}\n")


def _report_problems(verification: database.Verification) -> None:
    """Print unknown checks and warnings; raise an error for failed checks."""
    failed = [str(check) for check in verification.problems if check.verdict == "failed"]
    for check in verification.problems:
        if check.verdict == "unknown":
            sys.stderr.write(f"schema: not verified: {check.name}: {check.detail}\n")
    for each in verification.warnings:
        sys.stderr.write(f"schema: warning: not made by a migration: {each}\n")
    if failed:
        raise database.VerificationFailedError(
            f"the schema is at version {verification.version}, but differs from its migrations: {'; '.join(failed)}. "
            "Repair it, then run again; `observatory deploy database --verify-only` runs all checks"
        )


def _throwaway(props: dict[str, Any]) -> database.Throwaway | None:
    """Return what starts a server for own migrations; None where this machine has no root filesystem."""
    from observatory.platforms.rehearsal import rehearsal_server  # noqa: PLC0415 - only where something is deployed

    rootfs = props.get("backup_rootfs")
    return rehearsal_server(Path(rootfs)) if rootfs and Path(rootfs).is_dir() else None


def _outputs(props: dict[str, Any], schema: database.SchemaStatus) -> dict[str, Any]:
    complete = [entry for entry in schema.applied if entry.complete]
    applied = [
        _label(f"{entry.name}.{entry.variant}" if entry.variant else entry.name, entry.sha256) for entry in complete
    ]
    present = {label.split(maxsplit=1)[0] for label in props["migrations"]}
    repeated = [_label(entry.file.removesuffix(".sql"), entry.sha256) for entry in schema.repeatable]
    applied += [label for label in repeated if label.split(maxsplit=1)[0] in present]
    inputs = {key: props[key] for key in _INPUTS if key in props}
    return {**inputs, "version": schema.version, "edition": schema.edition, "applied": applied}


def _print_event(event: database.Event) -> None:
    """Print the events that cause a wait; the engine forwards a provider's standard error."""
    if event.kind in {"waiting", "backup", "blocked", "retrying"}:
        sys.stderr.write(f"{event.migration or 'schema'}: {event.kind}: {event.detail}\n")
