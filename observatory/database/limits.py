"""What a role may take of the server: connections and time; and settings of roles that `pulumi_postgresql` lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from observatory.database.connection import connect
from observatory.database.errors import readable

RoleSettings = Mapping[str, Mapping[str, str | int]]  # by role, then by the name of the setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of one login.

    Attributes:
        connections: sessions at once.
        statement_timeout_s: of one statement, in seconds; None: as long as it takes.
        lock_timeout_s: of the wait for one lock, in seconds.
        idle_in_transaction_s: that a session may do nothing in an open transaction, in seconds.
    """

    connections: int
    statement_timeout_s: int | None = None
    lock_timeout_s: int
    idle_in_transaction_s: int

    @property
    def settings(self) -> dict[str, str | int]:
        """The timeouts as PostgreSQL's settings, in milliseconds; 0 is none."""
        return {
            "statement_timeout": 1000 * (self.statement_timeout_s or 0),
            "lock_timeout": 1000 * self.lock_timeout_s,
            "idle_in_transaction_session_timeout": 1000 * self.idle_in_transaction_s,
        }


def set_role_settings(conninfo: str, settings: RoleSettings) -> None:
    """Give roles settings of their own, in all databases.

    Args:
        conninfo: as a role that may change these roles.
        settings: by role; other settings of these roles stay.

    Raises:
        StatementFailedError: PostgreSQL refused, for example because there is no such role.
        UnreachableError: no connection, or it broke.
    """
    with connect(conninfo, purpose="role settings") as connection, readable("settings of roles"):
        apply_role_settings(connection, settings)


def apply_role_settings(connection: psycopg.Connection, settings: RoleSettings) -> None:
    """Do the same on an open connection, in one transaction."""
    with connection.transaction():
        for role, values in settings.items():
            for name, value in values.items():
                alter = sql.SQL("ALTER ROLE {} SET {} = {}")
                connection.execute(alter.format(sql.Identifier(role), sql.Identifier(name), sql.Literal(value)))
