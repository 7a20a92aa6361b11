"""Which versions of the service fit an earlier state of the database, and what the rollout document then says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from observatory.backups.rollback.errors import RollbackRefusedError
from observatory.database import read_migrations
from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.migrations.expand_contract import contracted_beyond
from observatory.database.migrations.numbering import reached, version_in
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import Manifest
from observatory.documents.rollout import RolloutDocument
from observatory.operations.releases import checked_release
from observatory.platforms.platform import Platform
from observatory.platforms.stack_state import declared_schema
from observatory.settings import FLEETS, FleetName

_APPLIED = """
    SELECT version, name FROM observatory.schema_migrations WHERE statements_done = statements_total ORDER BY version
"""
_EXISTS = "SELECT to_regclass('observatory.schema_migrations') IS NOT NULL"


@dataclass(frozen=True, kw_only=True)
class SchemaChange:
    """The schema of the live database and of the one that replaces it.

    Attributes:
        before: version of the live schema.
        after: version of the other one.
        undone: names of the migrations that the other one lacks, oldest first.
        target: of the rollout document from then on: migrations after it stay undone until the next `deploy database`.
        stopped: fleets without traffic whose version does not fit; they are stopped.
    """

    before: int
    after: int
    undone: tuple[str, ...]
    target: int | None
    stopped: tuple[FleetName, ...] = ()


def applied_migrations(conninfo: str) -> dict[int, str]:
    """Return the completely applied migrations of a database, by number; also of a standby.

    Raises:
        DatabaseError: the database does not answer.
    """
    with connect(conninfo, purpose="read the ledger", settings={}) as connection, translate_errors("the ledger"):
        if connection.execute(_EXISTS).fetchone() != (True,):
            return {}
        return {int(version): str(name) for version, name in connection.execute(_APPLIED).fetchall()}


def known_migrations(platform: Platform) -> dict[int, str]:
    """Return the migrations that a database whose ledger is gone may have had, by number.

    Those that the stack's last `up` found applied, and all of the checkout: `deploy database` applies them without it.
    """
    declared = declared_schema(platform) or {}
    names = [label.split()[0].partition(".")[0] for label in declared.get("applied") or ()]
    applied = {version_in(name): name for name in names if not name.startswith("R__")}
    return {each.version: each.name for each in read_migrations(platform.workspace.migrations)} | applied


def schema_change(
    platform: Platform,
    document: RolloutDocument,
    *,
    live: str | None,
    now: Mapping[int, str],
    then: Collection[int],
    contracted: Collection[int] = (),
) -> SchemaChange:
    """Return how the schema changes, after checking that every version that has traffic fits.

    Args:
        platform: of the stack, with its releases.
        document: the rollout document.
        live: connection string of the live database; None if it has no ledger any more.
        now: applied migrations of the live database, by number.
        then: numbers of those of the one that replaces it.
        contracted: those of them that the live database lacks, and that remove something.

    Raises:
        RollbackRefusedError: a version that has traffic needs a newer schema, or what a migration that comes back has
            removed; or its release is not stored.
    """
    undone = sorted(now.keys() - set(then))
    fits = fitting_fleets(platform, document, then, contracted)
    for fleet in FLEETS:
        if document.fleet(fleet).weight and fleet not in fits:
            raise _unfit(
                platform,
                _manifests(platform, document, fleet),
                fleet,
                partial(_obstacle, then=then, contracted=contracted),
                None if live is None else partial(_fits_live, live=live, now=now),
            )
    return SchemaChange(
        before=max(now, default=0),
        after=max(then, default=0),
        undone=tuple(now[number] for number in undone),
        target=held_target(undone, then, document.schema_target),
        stopped=tuple(fleet for fleet in FLEETS if fleet not in fits and not document.fleet(fleet).stopped),
    )


def held_target(undone: Sequence[int], then: Collection[int], target: int | None) -> int | None:
    """Return the target that keeps what is undone from the next `up`; it is never below what the database then has."""
    if undone:
        return max((each for each in then if each < undone[0]), default=0)
    return None if target is None else max(target, reached(then, target))


def fitting_fleets(
    platform: Platform, document: RolloutDocument, then: Collection[int], contracted: Collection[int]
) -> list[FleetName]:
    """Return the fleets whose versions fit a schema; the arguments are those of `schema_change`."""
    return [fleet for fleet in FLEETS if _fits(_manifests(platform, document, fleet), then, contracted)]


def _manifests(platform: Platform, document: RolloutDocument, fleet: FleetName) -> list[Manifest]:
    state = document.fleet(fleet)
    versions = (state.version, *((state.rolling.version,) if state.rolling else ()))
    return [platform.release_store.manifest(version) for version in versions]


def _fits(manifests: Sequence[Manifest], then: Collection[int], contracted: Collection[int]) -> bool:
    return not any(_obstacle(each, then, contracted) for each in manifests)


def _obstacle(manifest: Manifest, then: Collection[int], contracted: Collection[int]) -> str:
    """Return why a version does not fit a schema; empty if it does."""
    if reached(then, manifest.schema_min) < manifest.schema_min:
        schema = max(then, default=0)
        return f"needs schema {manifest.schema_min} or later, and the database would have schema {schema}"
    if removed := [each for each in contracted if each > manifest.schema_max]:
        return (
            f"supports schema {manifest.schema_max}, and migration {min(removed)}, which would come back, has removed "
            "what it needs"
        )
    return ""


def _unfit(
    platform: Platform,
    manifests: Sequence[Manifest],
    fleet: FleetName,
    obstacle: Callable[[Manifest], str],
    fits_live: Callable[[Manifest], bool] | None,
) -> RollbackRefusedError:
    """Return the refusal, which names the newest stored version that works with both schemas."""
    version, reason = next((each.version, found) for each in manifests if (found := obstacle(each)))
    text = f"{version} is active on {fleet} and {reason}; nothing was changed"
    if fits_live is None:
        return RollbackRefusedError(
            text,
            remedy="No other version can be deployed while the database is gone: roll back to a later time before that "
            "first, deploy an earlier version, and roll back again.",
        )
    fitting = [each for each in _stored(platform) if not obstacle(each) and fits_live(each)]
    if not fitting:
        return RollbackRefusedError(
            text, remedy="No stored release works with both schemas: add one with `observatory release add`."
        )
    best = max(fitting, key=_precedence)
    return RollbackRefusedError(
        text,
        remedy=f"{best.version} fits both schemas: run `observatory rollback --method application --version "
        f"{best.version}` first, then this command again.",
    )


def _stored(platform: Platform) -> Iterator[Manifest]:
    """Yield the stored releases that may be deployed."""
    for version in platform.release_store.versions():
        with suppress(DeliveryRefusedError):
            yield checked_release(platform, version)


def _fits_live(manifest: Manifest, *, live: str, now: Collection[int]) -> bool:
    return _fits([manifest], now, ()) and contracted_beyond(live, manifest.schema_max) is None


def _precedence(manifest: Manifest) -> tuple[list[int], bool]:
    """Return the order of versions: by their numbers, a pre-release before its release."""
    numbers, _, suffix = manifest.version.removeprefix("v").partition("-")
    return [int(number) for number in numbers.split(".")], not suffix
