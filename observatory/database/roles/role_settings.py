"""Settings of roles, which `pulumi_postgresql` lacks."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors

RoleSettings = Mapping[str, Mapping[str, str | int]]  # by role, then by the name of the setting


def set_role_settings(conninfo: str, settings: RoleSettings) -> None:
    """Give roles settings of their own, in all databases.

    Args:
        conninfo: as a role that may change these roles.
        settings: by role; other settings of these roles stay.

    Raises:
        StatementFailedError: PostgreSQL refused, for example because there is no such role.
        UnreachableError: no connection, or it broke.
    """
    with connect(conninfo, purpose="role settings") as connection, translate_errors("settings of roles"):
        apply_role_settings(connection, settings)


def apply_role_settings(connection: psycopg.Connection, settings: RoleSettings) -> None:
    """Do the same on an open connection, in one transaction."""
    with connection.transaction():
        for role, values in settings.items():
            for name, value in values.items():
                alter = sql.SQL("ALTER ROLE {} SET {} = {}")
                connection.execute(alter.format(sql.Identifier(role), sql.Identifier(name), sql.Literal(value)))
