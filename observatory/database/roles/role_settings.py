"""Parameters of roles (ALTER ROLE SET), which `pulumi_postgresql` does not support."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors

RoleSettings = Mapping[str, Mapping[str, str | int]]  # by role, then by the name of the setting


def set_role_settings(conninfo: str, settings: RoleSettings) -> None:
    """Set parameters of roles, for all databases.

    Args:
        conninfo: as a role that may alter these roles.
        settings: parameters by role; other parameters of these roles stay.

    Raises:
        StatementFailedError: PostgreSQL rejected a statement, for example because the role does not exist.
        UnreachableError: the connection failed or broke.
    """
    logged = {"log_statement": "ddl"}  # the provisioner's own setting is `none`, for its passwords
    with (
        connect(conninfo, purpose="role settings", settings=logged) as connection,
        translate_errors("settings of roles"),
    ):
        apply_role_settings(connection, settings)


def apply_role_settings(connection: psycopg.Connection, settings: RoleSettings) -> None:
    """Set parameters of roles on an open connection, in one transaction."""
    with connection.transaction():
        for role, values in settings.items():
            for name, value in values.items():
                alter = sql.SQL("ALTER ROLE {} SET {} = {}")
                connection.execute(alter.format(sql.Identifier(role), sql.Identifier(name), sql.Literal(value)))
