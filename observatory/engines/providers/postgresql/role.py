"""The resource type `postgresql:index/role:Role`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from observatory.engines.embedded.values import Properties
from observatory.engines.providers.postgresql.resource_type import Inputs, ResourceType
from observatory.engines.providers.postgresql.statements import compose, unlogged

INFINITY = "infinity"
VERIFIER = "SCRAM-SHA-256$"  # how a password's verifier begins


class Role(ResourceType):
    """`postgresql:index/role:Role`: a role, its memberships, limits and password."""

    required = ("name",)
    defaults: ClassVar[Inputs] = {
        "bypassRowLevelSecurity": False,
        "connectionLimit": -1,
        "createDatabase": False,
        "createRole": False,
        "encryptedPassword": True,
        "idleInTransactionSessionTimeout": None,
        "inherit": True,
        "login": False,
        "password": None,
        "replication": False,
        "roles": None,
        "skipDropRole": False,
        "skipReassignOwned": False,
        "statementTimeout": None,
        "superuser": False,
        "validUntil": INFINITY,
    }
    sets = frozenset({"roles"})
    unsupported: ClassVar[Inputs] = {
        "assumeRole": "",
        "encrypted": None,
        "passwordWo": None,
        "passwordWoVersion": None,
        "searchPaths": None,
    }

    # The input, its keyword in CREATE ROLE and ALTER ROLE, and its column in pg_roles.
    _ATTRIBUTES = (
        ("superuser", "SUPERUSER", "rolsuper"),
        ("createDatabase", "CREATEDB", "rolcreatedb"),
        ("createRole", "CREATEROLE", "rolcreaterole"),
        ("inherit", "INHERIT", "rolinherit"),
        ("login", "LOGIN", "rolcanlogin"),
        ("bypassRowLevelSecurity", "BYPASSRLS", "rolbypassrls"),
        ("replication", "REPLICATION", "rolreplication"),
    )
    _SETTINGS: ClassVar[Mapping[str, str]] = {
        "statementTimeout": "statement_timeout",
        "idleInTransactionSessionTimeout": "idle_in_transaction_session_timeout",
    }

    def id_of(self, inputs: Inputs) -> str:
        """Return the name."""
        return str(inputs["name"])

    def named_by(self, id_: str) -> Properties:
        """Return the name, which is the id."""
        return {"name": id_}

    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Create or adopt the role, then apply its attributes, memberships, settings and password."""
        declared, name = self.complete(inputs), str(inputs["name"])
        if before and before["name"] != name:
            connection.execute(compose("ALTER ROLE {} RENAME TO {}", before["name"], name))
        found = self._row(connection, name)
        self._set_attributes(connection, name, declared, found)
        self._set_memberships(connection, name, declared.get("roles") or [])
        for key, setting in self._SETTINGS.items():
            self._set(connection, name, setting, int(declared.get(key) or 0))
        if declared.get("password") and (before is None or before.get("password") != declared["password"]):
            self._set_password(connection, name, str(declared["password"]))

    def read(self, connection: psycopg.Connection, outputs: Inputs) -> Properties | None:
        """Read the role from pg_roles, and as a superuser also its password's verifier."""
        row = self._row(connection, str(outputs["name"]))
        if row is None:
            return None
        settings = dict(item.split("=", 1) for item in row["rolconfig"] or ())
        found = {key: row[column] for key, _, column in self._ATTRIBUTES}
        found |= {key: int(settings.get(setting, 0)) for key, setting in self._SETTINGS.items()}
        found |= {
            "connectionLimit": row["rolconnlimit"],
            "encryptedPassword": True,
            "name": row["rolname"],
            "roles": self._memberships(connection, str(outputs["name"])) or None,
            "skipDropRole": bool(outputs.get("skipDropRole")),
            "skipReassignOwned": bool(outputs.get("skipReassignOwned")),
            "validUntil": row["valid_until"],
        }
        if outputs.get("password"):
            found["password"] = self._password(connection, outputs)
        return found

    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Reassign the role's objects to the current user, and drop the role."""
        name = str(outputs["name"])
        if not outputs.get("skipReassignOwned"):
            connection.execute(compose("GRANT {} TO CURRENT_USER", name))
            connection.execute(compose("REASSIGN OWNED BY {} TO CURRENT_USER", name))
            connection.execute(compose("DROP OWNED BY {}", name))
        if not outputs.get("skipDropRole"):
            connection.execute(compose("DROP ROLE {}", name))

    def _row(self, connection: psycopg.Connection, name: str) -> dict[str, Any] | None:
        columns = "rolname, rolconnlimit, rolconfig, coalesce(rolvaliduntil::text, 'infinity') AS valid_until"
        flags = ", ".join(column for _, _, column in self._ATTRIBUTES)
        with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            query = f"SELECT {columns}, {flags} FROM pg_roles WHERE rolname = %s"  # noqa: S608 - the names above
            return cursor.execute(query.encode(), [name]).fetchone()

    def _set_attributes(
        self, connection: psycopg.Connection, name: str, declared: Inputs, found: Mapping[str, Any] | None
    ) -> None:
        """Set the attributes that differ: PostgreSQL lets only a superuser mention some of them, even unchanged."""
        keywords = [
            keyword if declared[key] else f"NO{keyword}"
            for key, keyword, column in self._ATTRIBUTES
            if found is None or found[column] != declared[key]
        ]
        options = sql.SQL(" ").join(
            [
                *map(sql.SQL, keywords),
                sql.SQL("CONNECTION LIMIT {}").format(sql.Literal(int(declared["connectionLimit"]))),
                sql.SQL("VALID UNTIL {}").format(sql.Literal(declared["validUntil"])),
            ]
        )
        connection.execute(compose("CREATE ROLE {} " if found is None else "ALTER ROLE {} ", name) + options)

    def _memberships(self, connection: psycopg.Connection, name: str) -> list[str]:
        query = "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = to_regrole(%s)"
        quoted = sql.Identifier(name).as_string()
        return [row[0].strip('"') for row in connection.execute(query.encode(), [quoted]).fetchall()]

    def _set_memberships(self, connection: psycopg.Connection, name: str, declared: list[str]) -> None:
        current = set(self._memberships(connection, name))
        for role in sorted(current - set(declared)):
            connection.execute(compose("REVOKE {} FROM {}", role, name))
        for role in sorted(set(declared) - current):
            connection.execute(compose("GRANT {} TO {}", role, name))

    def _set(self, connection: psycopg.Connection, name: str, setting: str, value: int) -> None:
        if value:
            connection.execute(compose("ALTER ROLE {} SET {} TO ", name, setting) + sql.Literal(value))
        else:
            connection.execute(compose("ALTER ROLE {} RESET {}", name, setting))

    def _set_password(self, connection: psycopg.Connection, name: str, password: str) -> None:
        if not password.startswith(VERIFIER):
            encrypt = connection.pgconn.encrypt_password
            password = encrypt(password.encode(), name.encode(), b"scram-sha-256").decode()
        with unlogged(connection):
            connection.execute(compose("ALTER ROLE {} PASSWORD ", name) + sql.Literal(password))

    def _password(self, connection: psycopg.Connection, outputs: Inputs) -> str:
        """Return the server's verifier if this login may read it and the state has one; else the state's password."""
        recorded = str(outputs["password"])
        superuser = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        if superuser != (True,) or not recorded.startswith(VERIFIER):
            return recorded
        row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [outputs["name"]]).fetchone()
        return str(row[0] or "") if row else ""
