"""Whether a stack's database is there with its ledger of migrations, and which other databases of a server have one."""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum

import psycopg

from observatory.database.connection import connect, with_database
from observatory.database.error_translation import translate_errors
from observatory.database.errors import UnreachableError

SERVER_DATABASE = "postgres"  # every server has it

# PostgreSQL gives the limit -2 to a database whose removal was interrupted: it accepts no connections.
_EXISTS = "SELECT FROM pg_database WHERE datname = %s AND datconnlimit <> -2"
_DATABASES = "SELECT oid, datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname"
_LEDGER = "SELECT to_regclass('observatory.schema_migrations') IS NOT NULL"


class Presence(StrEnum):
    """What a server has of a database: with its ledger of migrations, without one, or not at all."""

    WHOLE = "whole"
    EMPTIED = "emptied"
    DROPPED = "dropped"


def presence_of(server: str, name: str) -> Presence:
    """Return what a running server, a standby too, has of a database.

    Args:
        server: connection string of its superuser.
        name: of the database.

    Raises:
        UnreachableError: the server does not respond.
    """
    with (
        connect(with_database(server, SERVER_DATABASE), purpose="find the database") as session,
        translate_errors("databases"),
    ):
        if session.execute(_EXISTS, [name]).fetchone() is None:
            return Presence.DROPPED
    return Presence.WHOLE if has_ledger(with_database(server, name)) else Presence.EMPTIED


def has_ledger(conninfo: str) -> bool:
    """Return whether a database has a ledger of migrations.

    Raises:
        UnreachableError: the database does not respond.
    """
    with connect(conninfo, purpose="find the ledger") as session, translate_errors("ledger"):
        return session.execute(_LEDGER).fetchone() == (True,)


def databases(server: str) -> dict[int, str]:
    """Return the names of a server's databases that accept connections, by their object identifiers.

    A renamed database keeps its identifier; a copy has another one.

    Raises:
        UnreachableError: the server does not respond.
    """
    with (
        connect(with_database(server, SERVER_DATABASE), purpose="find databases") as session,
        translate_errors("databases"),
    ):
        return {int(oid): str(name) for oid, name in session.execute(_DATABASES).fetchall()}


def others_with_ledger(server: str, name: str) -> dict[int, str]:
    """Return the other databases of a server that have a ledger of migrations; one that cannot be read has none.

    Raises:
        UnreachableError: the server does not respond.
    """
    found = {}
    for oid, other in databases(server).items():
        with suppress(UnreachableError, psycopg.Error):
            if other != name and has_ledger(with_database(server, other)):
                found[oid] = other
    return found
