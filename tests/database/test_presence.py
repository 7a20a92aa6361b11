"""What a server has of a stack's database, and which other databases have a ledger of migrations."""

from __future__ import annotations

import psycopg

from observatory.database.presence import Presence, databases, others_with_ledger, presence_of
from tests.support.postgres import PostgresServer

LEDGER = "CREATE SCHEMA observatory; CREATE TABLE observatory.schema_migrations ()"


def test_a_database_is_whole_emptied_or_dropped(postgres: PostgresServer, fresh_database: str) -> None:
    server = postgres.conninfo()
    assert presence_of(server, fresh_database) is Presence.EMPTIED
    with postgres.superuser(fresh_database) as inside:
        inside.execute(LEDGER)
    assert presence_of(server, fresh_database) is Presence.WHOLE
    assert presence_of(server, "no_such_database") is Presence.DROPPED


def test_a_database_whose_removal_was_interrupted_is_dropped(postgres: PostgresServer) -> None:
    with postgres.fresh_database(extensions=False) as name, postgres.superuser() as server:
        server.execute("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", [name])
        assert presence_of(postgres.conninfo(), name) is Presence.DROPPED
        assert name not in databases(postgres.conninfo()).values()


def test_others_with_a_ledger_are_found_and_one_that_cannot_be_read_is_left_out(postgres: PostgresServer) -> None:
    with (
        postgres.fresh_database(extensions=False) as with_ledger,
        postgres.fresh_database(extensions=False) as without,
        postgres.fresh_database(extensions=False) as closed,
        psycopg.connect(postgres.conninfo(), autocommit=True) as server,
    ):
        for name in (with_ledger, closed):
            with postgres.superuser(name) as inside:
                inside.execute(LEDGER)
        server.execute(f"ALTER DATABASE {closed} ALLOW_CONNECTIONS false")
        found = others_with_ledger(postgres.conninfo(), "observatory").values()
        assert with_ledger in found
        assert not {without, closed, "postgres"} & set(found)
        assert with_ledger not in others_with_ledger(postgres.conninfo(), with_ledger).values()
