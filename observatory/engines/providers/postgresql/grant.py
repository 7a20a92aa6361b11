"""The resource type `postgresql:index/grant:Grant`."""

# ruff: noqa: ARG002 - the signatures of the base class

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import psycopg
from psycopg import sql

from observatory.engines.embedded.values import Properties
from observatory.engines.providers.postgresql.resource_type import INSTALL_PLUGIN, Inputs, ResourceType
from observatory.engines.providers.postgresql.statements import (
    compose,
    grant_option,
    grantee,
    in_id_order,
    privileges,
    role_exists,
    role_oid,
)

_GRANTED = """
    SELECT name, array_remove(array_agg(privilege_type), NULL)
    FROM ({}) AS object (name, acl) LEFT JOIN LATERAL aclexplode(acl) ON grantee = %(grantee)s
    GROUP BY name ORDER BY name
"""


class Grant(ResourceType):
    """`postgresql:index/grant:Grant`: privileges on a database, a schema, or the tables or sequences in one."""

    required = ("database", "objectType", "privileges", "role")
    defaults: ClassVar[Inputs] = {"objects": None, "schema": None, "withGrantOption": False}
    replacing = frozenset({"database", "objectType", "role", "objects", "schema", "withGrantOption"})
    sets = frozenset({"privileges", "objects"})
    unsupported: ClassVar[Inputs] = {"columns": None}
    delete_before_replace = True

    _RELATION_KINDS: ClassVar[Mapping[str, str]] = {"table": "r", "sequence": "S"}  # pg_class.relkind

    def problems(self, inputs: Inputs) -> Iterator[tuple[str, str]]:
        """Refuse unsupported object types and inputs that do not fit the object type."""
        yield from super().problems(inputs)
        kind = inputs.get("objectType")
        if kind not in {"database", "schema", *self._RELATION_KINDS}:
            supported = "database, schema, table or sequence"
            yield "objectType", f"{kind!r} is not supported here; use {supported}, or {INSTALL_PLUGIN}"
        if kind != "database" and not inputs.get("schema"):
            yield "schema", f"is required for a {kind}"
        if inputs.get("objects") and kind not in self._RELATION_KINDS:
            yield "objects", f"does not apply to a {kind}; remove it"

    def id_of(self, inputs: Inputs) -> str:
        """Return `role_database[_schema]_objectType[_objects]`."""
        schema = [] if inputs["objectType"] == "database" else [inputs["schema"]]
        return "_".join([inputs["role"], inputs["database"], *schema, inputs["objectType"], *self._objects(inputs)])

    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Revoke all privileges, then grant the declared ones. One transaction: other sessions see only the result."""
        connection.execute(sql.SQL("REVOKE ALL PRIVILEGES ON {} FROM {}").format(self._target(inputs), grantee(inputs)))
        if inputs["privileges"]:
            grant = sql.SQL("GRANT {} ON {} TO {}").format(privileges(inputs), self._target(inputs), grantee(inputs))
            connection.execute(grant + grant_option(inputs))

    def read(self, connection: psycopg.Connection, outputs: Inputs) -> Properties | None:
        """Read the privileges. If those of one object differ, return them for all objects."""
        if not role_exists(connection, outputs["role"]):
            return None
        recorded = outputs["privileges"]
        granted = self._granted(connection, outputs)
        differing = next((found for found in granted if set(found) != set(recorded)), recorded)
        return self.select_inputs(outputs) | {"privileges": differing}

    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Revoke all privileges."""
        revoke = sql.SQL("REVOKE ALL PRIVILEGES ON {} FROM {}")
        connection.execute(revoke.format(self._target(outputs), grantee(outputs)))

    def _objects(self, inputs: Inputs) -> list[str]:
        return in_id_order(inputs.get("objects") or [])

    def _target(self, inputs: Inputs) -> sql.Composed:
        kind = inputs["objectType"]
        if kind in {"database", "schema"}:
            return compose(f"{kind.upper()} {{}}", inputs[kind])
        if names := self._objects(inputs):
            listed = sql.SQL(", ").join(sql.Identifier(inputs["schema"], name) for name in names)
            return sql.SQL("TABLE {}" if kind == "table" else "SEQUENCE {}").format(listed)
        return compose(f"ALL {kind.upper()}S IN SCHEMA {{}}", inputs["schema"])

    def _granted(self, connection: psycopg.Connection, outputs: Inputs) -> Iterator[list[str]]:
        """Yield the grantee's privileges on each object."""
        kind = outputs["objectType"]
        if kind == "database":
            query, names = "SELECT datname, datacl FROM pg_database WHERE datname = %(database)s", None
        elif kind == "schema":
            query, names = "SELECT nspname, nspacl FROM pg_namespace WHERE nspname = %(schema)s", None
        else:
            query = (
                "SELECT relname, relacl FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE nspname = %(schema)s AND relkind = %(kind)s"
            )
            names = set(self._objects(outputs))
        values = {
            "database": outputs["database"],
            "schema": outputs.get("schema"),
            "kind": self._RELATION_KINDS.get(kind),
            "grantee": role_oid(connection, outputs["role"]),
        }
        for name, found in connection.execute(_GRANTED.format(query).encode(), values).fetchall():
            if not names or name in names:
                yield found
