"""Expand and contract: old and new releases run side by side, so what one of them needs may not go yet.

A migration expands (adds what older releases do not mind) unless its header says `-- phase: contract`. A release says
with which versions of the schema it works; a contracting migration beyond the newest of them would break it. Owns that
refusal. Who runs which release is plain data, given by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.database.errors import ContractRefusedError

if TYPE_CHECKING:
    from observatory.database.migrations.statements import Script


class SchemaRequirement(NamedTuple):
    """Which versions of the schema a fleet's release works with.

    Attributes:
        fleet: `blue (live)`, `green (kept for rollback)`.
        version: of the release, `v0.4.0`.
        schema_min: lowest version of the schema, inclusive.
        schema_max: newest version of the schema whose shape it knows, inclusive; later ones may only add to it.
    """

    fleet: str
    version: str
    schema_min: int
    schema_max: int


def refuse_contracts(scripts: Iterable[Script], requirements: Sequence[SchemaRequirement]) -> None:
    """Refuse pending migrations that contract while somebody needs the old shape.

    Raises:
        ContractRefusedError: names the file, and each fleet with its release.
    """
    for script in scripts:
        migration = script.migration
        blocked = [need for need in requirements if need.schema_max < migration.version]
        if script.phase == "contract" and blocked:
            named = " and ".join(f"{need.fleet}: {need.version}, up to schema {need.schema_max}" for need in blocked)
            raise ContractRefusedError(
                f"{migration.place()}: takes away what a release needs that is in use ({named}). Nothing was changed: "
                f"deploy a release that knows schema {migration.version} to both fleets first"
            )


_LATER = "SELECT version, source FROM observatory.schema_migrations WHERE version > %s ORDER BY version"


def contracted_beyond(conninfo: str, version: int) -> int | None:
    """Return the first applied migration after `version` that contracts; None: a release that knows `version` can run.

    Raises:
        StatementFailedError: there is no ledger.
        UnreachableError: no connection, or it broke.
    """
    from observatory.database.migrations.statements import phase_of  # noqa: PLC0415 - brings a parser

    with connect(conninfo, purpose="look for contracting migrations") as connection, translate_errors("the ledger"):
        later = connection.execute(_LATER, [version]).fetchall()
    return next((number for number, source in later if phase_of(source) == "contract"), None)
