"""`deploy database --repair`: its plan, confirmation and exit codes, on a database without a stack."""

import json
import shutil

import psycopg
import pytest

from tests.support.checkout import Checkout
from tests.support.postgres import PostgresServer


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with one migration, which fails at its second statement."""
    checkout = Checkout.copy(tmp_path_factory.mktemp("checkout"), rootfs=None)
    shutil.rmtree(checkout.root / "migrations")
    (checkout.root / "migrations").mkdir()
    (checkout.root / "migrations/001_first.sql").write_text("-- transaction: false\nSELECT 1;\nSELECT missing;\n")
    return checkout


def test_a_repair_is_planned_confirmed_and_made(checkout: Checkout, postgres: PostgresServer) -> None:
    with postgres.fresh_database() as name:
        conninfo = postgres.conninfo(dbname=name)

        def run(*arguments: str, expect: int = 0) -> tuple[str, str]:
            done = checkout.run("deploy", "database", "--database-url", conninfo, *arguments, expect=expect)
            return done.stdout, " ".join(done.stderr.split())

        def versions() -> list[tuple[int]]:
            with psycopg.connect(conninfo) as connection:
                return connection.execute("SELECT version FROM observatory.schema_migrations").fetchall()

        run(expect=1)
        forget = ("--repair", "forget", "migrations/001_first.sql")
        assert "needs --reason TEXT" in run(*forget, expect=2)[1]
        assert "needs FILE" in run(*forget[:2], "--reason", "x", expect=2)[1]
        assert "go with --repair" in run("001_first.sql", expect=2)[1]
        assert "Row after:  none" in run(*forget, "--dry-run")[0]
        assert "Would repair: forget 001_first.sql" in run(*forget, "--reason", "x", expect=3)[1]
        assert "001_first: 2 of 2 statements" in run("--repair", "applied", forget[2], "--dry-run")[0]
        assert "nothing to accept" in run("--repair", "accept", forget[2], "--dry-run", expect=3)[1]
        assert versions() == [(1,)]

        done = json.loads(run(*forget, "--reason", "it never worked", "--yes", "--output", "json")[0])

        assert (done["file"], done["after"], done["repaired"]) == ("001_first.sql", None, True)
        assert versions() == []
        assert "there is nothing to forget" in run(*forget, "--reason", "again", "--yes", expect=3)[1]
