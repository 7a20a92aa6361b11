"""Generates the catalogue for each edition whose server is installed. Verifications compare a database with it.

The root filesystem has the Apache edition's server; OBSERVATORY_PG_PREFIX names the community edition's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from observatory.database import catalogue
from observatory.database.catalogue_generation import generate_catalogue
from observatory.database.migrations.files import Edition
from observatory.workspace import Workspace
from tests.support.postgres import PostgresServer, community_server, postgres_server

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the files of the installed editions, and report the missing ones."""
    rootfs = Workspace(root=ROOT, stack="local").ensure_rootfs()
    with postgres_server(rootfs) as server:
        _generate(server, "apache")
    community = community_server(rootfs)
    if community is None:
        sys.stderr.write("community: unchanged, because OBSERVATORY_PG_PREFIX names no server\n")
        return
    with community as server:
        _generate(server, "community")


def _generate(server: PostgresServer, edition: Edition) -> None:
    with server.fresh_database() as name:
        made = generate_catalogue(server.conninfo(dbname=name), migrations=ROOT / "migrations", edition=edition)
    sys.stdout.write(f"{catalogue.write(made).relative_to(ROOT)}: {len(made.steps)} versions\n")


if __name__ == "__main__":
    main()
