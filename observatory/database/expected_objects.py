"""The objects that a database must have: the committed catalogue, and what own migrations make according to a replica.

Owns which files the committed catalogue describes, and the reason where the objects of own migrations are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from observatory.database.catalogue import Catalogue, Objects, apply_step, load
from observatory.database.errors import DatabaseError
from observatory.database.migrations import ledger
from observatory.database.migrations.files import Edition, Migration

if TYPE_CHECKING:
    from observatory.database.rehearsal_origin import Origin
    from observatory.database.throwaway_server import Throwaway


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The expected objects; None with the reason where they are unknown."""

    objects: Objects | None
    unknown: str = ""


def uncatalogued(edition: Edition, files: Sequence[Migration]) -> list[str]:
    """Return the names of the files that the committed catalogue does not describe."""
    catalogue = load(edition)
    return [each.file for each in files if not catalogue.describes(each.version, each.sha256)]


def expected_objects(
    catalogue: Catalogue,
    entries: Sequence[ledger.Entry],
    *,
    version: int,
    origin: Origin,
    files: Sequence[Migration],
    throwaway: Throwaway | None,
) -> Expectation:
    """Return the objects that a database with these applied files must have.

    Args:
        catalogue: the committed one of the edition whose files were applied.
        entries: of the ledger.
        version: of the schema.
        origin: the database.
        files: all migrations with all variants.
        throwaway: starts the server on which own migrations are replayed, unless a rehearsal has kept what they make.
    """
    applied = sorted((each for each in entries if each.complete), key=lambda each: each.version)
    own = [each for each in applied if not catalogue.describes(each.version, each.sha256)]
    if not own:
        return Expectation(objects=catalogue.at(version))
    names = ", ".join(f"{each.stem}.sql" for each in own)
    if throwaway is None:
        return Expectation(objects=None, unknown=f"{names}: no PostgreSQL for a rehearsal is installed on this machine")
    from observatory.database.replica import own_objects  # noqa: PLC0415 - loads the SQL parser

    described = sum(each.version < own[0].version for each in applied)
    try:
        step = own_objects(throwaway, origin=origin, edition=catalogue.edition, files=files)
    except DatabaseError as error:
        return Expectation(objects=None, unknown=f"{names}: not replayed on an empty database: {error}")
    return Expectation(objects=apply_step(catalogue.at(described), step))
