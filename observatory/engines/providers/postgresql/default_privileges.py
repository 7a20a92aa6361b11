"""The resource type `postgresql:index/defaultPrivileges:DefaultPrivileges`."""

# ruff: noqa: ARG002 - the signatures of the base class

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import psycopg
from psycopg import sql

from observatory.engines.embedded.values import Properties
from observatory.engines.providers.postgresql.resource_type import Inputs, ResourceType
from observatory.engines.providers.postgresql.statements import (
    compose,
    grant_option,
    grantee,
    privileges,
    role_exists,
    role_oid,
)


class DefaultPrivileges(ResourceType):
    """`postgresql:index/defaultPrivileges:DefaultPrivileges`: privileges on the objects that an owner creates later."""

    required = ("database", "objectType", "owner", "privileges", "role")
    defaults: ClassVar[Inputs] = {"schema": None, "withGrantOption": False}
    replacing = frozenset({"database", "objectType", "owner", "role", "schema", "withGrantOption"})
    sets = frozenset({"privileges"})

    _OBJECT_TYPES: ClassVar[Mapping[str, str]] = {  # pg_default_acl.defaclobjtype
        "table": "r",
        "sequence": "S",
        "function": "f",
        "routine": "f",
        "type": "T",
        "schema": "n",
    }

    def problems(self, inputs: Inputs) -> Iterator[tuple[str, str]]:
        """Refuse unknown object types."""
        yield from super().problems(inputs)
        if inputs.get("objectType") not in self._OBJECT_TYPES:
            yield "objectType", f"is not supported; use one of {', '.join(self._OBJECT_TYPES)}"

    def id_of(self, inputs: Inputs) -> str:
        """Return `role_database_schema_owner_objectType`."""
        schema = inputs.get("schema") or "noschema"
        return "_".join([inputs["role"], inputs["database"], schema, inputs["owner"], inputs["objectType"]])

    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Revoke all default privileges, then grant the declared ones."""
        self.delete(connection, inputs)
        if inputs["privileges"]:
            objects = sql.SQL(f"{inputs['objectType'].upper()}S")
            grant = sql.SQL("GRANT {} ON {} TO {}").format(privileges(inputs), objects, grantee(inputs))
            connection.execute(self._alter(inputs) + grant + grant_option(inputs))

    def read(self, connection: psycopg.Connection, outputs: Inputs) -> Properties | None:
        """Read the default privileges. If there are none but the state has some, the resource is gone."""
        if not role_exists(connection, outputs["role"]):
            return None
        query = """
            SELECT array_remove(array_agg(privilege_type), NULL)
            FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(defaclacl)
            LEFT JOIN pg_namespace n ON n.oid = defaclnamespace
            WHERE defaclobjtype = %s AND grantee = %s AND defaclrole = to_regrole(%s)
              AND nspname IS NOT DISTINCT FROM %s
        """
        owner, oid = sql.Identifier(outputs["owner"]).as_string(), role_oid(connection, outputs["role"])
        values = [self._OBJECT_TYPES[outputs["objectType"]], oid, owner, outputs.get("schema")]
        row = connection.execute(query.encode(), values).fetchone()
        found = list(row[0] or ()) if row else []
        if not found and outputs["privileges"]:
            return None
        return self.select_inputs(outputs) | {"privileges": found}

    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Revoke all default privileges."""
        objects = sql.SQL(f"{outputs['objectType'].upper()}S")
        revoke = sql.SQL("REVOKE ALL ON {} FROM {}").format(objects, grantee(outputs))
        connection.execute(self._alter(outputs) + revoke)

    def _alter(self, inputs: Inputs) -> sql.Composed:
        alter = compose("ALTER DEFAULT PRIVILEGES FOR ROLE {} ", inputs["owner"])
        return alter + compose("IN SCHEMA {} ", inputs["schema"]) if inputs.get("schema") else alter
