"""A database with a login that creates roles, and a lab with the in-tree provider."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from observatory.database import ensure_database, ensure_provisioner, scram_verifier
from observatory.engines.embedded import StackOptions
from observatory.engines.providers import IN_TREE, plugin
from tests.engines.embedded.lab import Lab
from tests.support.postgres import PostgresServer


@dataclass(frozen=True, kw_only=True)
class Site:
    """A database, its owner, the login that creates its roles, and a prefix for this test's roles."""

    server: PostgresServer
    prefix: str
    password: str

    @property
    def database(self) -> str:
        return f"{self.prefix}db"

    @property
    def owner(self) -> str:
        return f"{self.prefix}migrator"

    @property
    def provisioner(self) -> str:
        return f"{self.prefix}provisioner"

    @property
    def config(self) -> dict[str, Any]:
        """The inputs of `pulumi_postgresql.Provider`."""
        return {
            "host": self.server.host,
            "port": str(self.server.port),
            "username": self.provisioner,
            "password": self.password,
            "database": self.database,
            "superuser": "false",
            "sslmode": "disable",
        }

    def superuser(self) -> psycopg.Connection:
        return self.server.superuser(self.database)

    def one(self, query: str) -> tuple[Any, ...] | None:
        with self.superuser() as admin:
            return admin.execute(query.encode()).fetchone()


@pytest.fixture
def site(postgres: PostgresServer) -> Iterator[Site]:
    """Return a site, and remove its roles at the end."""
    made = Site(server=postgres, prefix=f"t{secrets.token_hex(3)}_", password=secrets.token_hex(8))
    ensure_database(postgres.conninfo(), name=made.database, owner=made.owner)
    ensure_provisioner(
        postgres.conninfo(),
        database=made.database,
        owner=made.owner,
        name=made.provisioner,
        verifier=scram_verifier(made.password),
        managed=(),
    )
    yield made
    postgres.drop_database(made.database)
    with postgres.superuser() as admin:
        pattern = made.prefix.replace("_", r"\_") + "%"
        rows = admin.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE %s", [pattern]).fetchall()
        admin.execute(sql.SQL("REVOKE SET ON PARAMETER log_statement FROM {}").format(sql.Identifier(made.provisioner)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.SQL(", ").join(sql.Identifier(row[0]) for row in rows)))


class AccessLab(Lab):
    """A lab in which both engines use the in-tree provider of `pulumi_postgresql`."""

    @property
    def options(self) -> StackOptions:
        return replace(super().options, packages=IN_TREE)

    @property
    def environment(self) -> dict[str, str]:
        directory = plugin.install(self.home / "plugins")
        return {**super().environment, "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def lab(tmp_path: Path) -> AccessLab:
    return AccessLab(tmp_path / "lab")
