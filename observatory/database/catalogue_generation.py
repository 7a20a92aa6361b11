"""Generates the catalogue: migrates an empty database version by version and records the objects of each version."""

from __future__ import annotations

from pathlib import Path

from observatory.database.catalogue import SETTINGS, Catalogue, Objects, Step, difference, read_objects
from observatory.database.connection import connect, describe
from observatory.database.deployment import deploy
from observatory.database.error_translation import translate_errors
from observatory.database.migrations.files import Edition, load_migrations
from observatory.database.migrations.numbering import FIRST_OWN


def generate_catalogue(conninfo: str, *, migrations: Path, edition: Edition) -> Catalogue:
    """Migrate an empty database version by version and return the catalogue of its objects.

    Args:
        conninfo: as the role that owns the database, which has only its extensions.
        migrations: directory of the files; own ones are left out.
        edition: of the server's TimescaleDB.

    Raises:
        DatabaseError: see `deploy`.
    """
    steps: list[Step] = []
    before: Objects = {}
    for migration in load_migrations(migrations, edition):
        if migration.version >= FIRST_OWN:  # own migrations are not committed: their rehearsal is their catalogue
            break
        by = "catalogue"
        deploy(conninfo, migrations=migrations, target=migration.version, actor=by, deployment_id=by, linted=False)
        with (
            connect(conninfo, purpose="catalogue", settings=SETTINGS) as connection,
            translate_errors(describe(conninfo)),
        ):
            after = read_objects(connection)
        steps.append(difference(before, after, sha256=migration.sha256))
        before = after
    return Catalogue(edition=edition, steps=tuple(steps))
