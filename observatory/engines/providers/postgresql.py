"""The roles and privileges of `pulumi_postgresql`, over psycopg: Role, Grant and DefaultPrivileges.

Inputs, outputs, defaults, ids and what forces a replacement are the plugin's (pulumi-postgresql 3.18, which bridges
terraform-provider-postgresql 1.26). It differs in three things, on purpose: creating a role that exists adopts it, so
that a killed `up` can be repeated; a password in plain text leaves this process as a SCRAM verifier only; a login that
is not a superuser must be a member of the owners whose objects it grants, instead of becoming one for a moment.

Does not own connections (`observatory.database`) nor which roles there are (`components.access`). What the plugin has
and this has not is refused by name.
"""

# ruff: noqa: ARG002 - the signatures of the engine's interface

from __future__ import annotations

import secrets
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from observatory.database import DatabaseError
from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors
from observatory.engines.embedded.provider import Diff, Provider, ProviderError
from observatory.engines.embedded.values import UNKNOWN, Properties, reveal

PUBLIC = "public"
DEFAULTS_KEY = "__defaults"  # in inputs: which of them are defaults, as the plugin's bridge records it
SUFFIX_DIGITS = 7  # of the name that a role without one gets, as the bridge does
INFINITY = "infinity"
VERIFIER = "SCRAM-SHA-256$"

Inputs = Mapping[str, Any]

_HELD = """
    SELECT name, array_remove(array_agg(privilege_type), NULL)
    FROM ({}) AS object (name, acl) LEFT JOIN LATERAL aclexplode(acl) ON grantee = %(grantee)s
    GROUP BY name ORDER BY name
"""


class Kind(ABC):
    """One resource type.

    Attributes:
        required: inputs that must be given.
        defaults: what the other inputs are when they are not given; None has no default, and one that is false is not
            filled in.
        unserved: outputs that the plugin has besides, and which are always nothing here.
        replacing: inputs whose change replaces the resource.
        sets: inputs whose order does not matter.
        delete_before_replace: whether a replacement must delete first.
    """

    required: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Inputs]
    replacing: ClassVar[frozenset[str]] = frozenset()
    sets: ClassVar[frozenset[str]] = frozenset()
    unserved: ClassVar[Inputs] = {}
    delete_before_replace: ClassVar[bool] = False

    def problems(self, inputs: Inputs) -> Iterator[tuple[str, str]]:
        """Yield what is wrong as (property, reason)."""
        known = {*self.required, *self.defaults}
        for name in inputs:
            if name not in known and name != DEFAULTS_KEY:
                yield name, "is not served in-tree; install the postgresql plugin and run by the Pulumi CLI"
        for name in self.required:
            if name not in inputs:
                yield name, "is required"

    def complete(self, inputs: Inputs) -> Properties:
        """Return the inputs with every default, sets in the plugin's order."""
        whole = {**self.defaults, **{key: value for key, value in inputs.items() if key != DEFAULTS_KEY}}
        return {key: sorted(set(value)) if key in self.sets and value else value for key, value in whole.items()}

    def of_inputs(self, known: Inputs) -> Properties:
        """Return what of inputs or outputs can be an input."""
        return {key: known.get(key) for key in (*self.required, *self.defaults)}

    def outputs(self, found: Inputs) -> Properties:
        """Return what was found as the plugin's outputs have it."""
        return {**self.unserved, **self.complete(found), "id": self.id_of(found)}

    def diff(self, outputs: Inputs, news: Inputs) -> Diff:
        """Compare what is with what is wanted; as in Terraform, nothing, zero and empty are the same."""
        old, new = self.complete(outputs), self.complete(news)
        names = sorted({*self.required, *self.defaults})
        changed = tuple(name for name in names if (old.get(name) or None) != (new.get(name) or None))
        replaces = tuple(name for name in changed if name in self.replacing)
        return Diff(
            changes=bool(changed),
            changed=changed,
            replaces=replaces,
            delete_before_replace=bool(replaces) and self.delete_before_replace,
        )

    @abstractmethod
    def id_of(self, inputs: Inputs) -> str:
        """Return the resource's id."""

    @abstractmethod
    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Bring the server to the inputs, in the transaction that is open; `before` are the outputs of an update."""

    @abstractmethod
    def read(self, connection: psycopg.Connection, known: Inputs) -> Properties | None:
        """Return the outputs as they really are, None where the resource is gone."""

    @abstractmethod
    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Remove it, in the transaction that is open."""

    def database_of(self, inputs: Inputs) -> str | None:
        """Return the database it is in; None: it is the server's."""
        return inputs.get("database")


class Role(Kind):
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
    unserved: ClassVar[Inputs] = {
        "assumeRole": "",
        "encrypted": None,
        "passwordWo": None,
        "passwordWoVersion": None,
        "searchPaths": None,
    }

    # Input, word for it in CREATE and ALTER ROLE, column of pg_roles.
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

    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Create or adopt the role, then bring it to the inputs."""
        wanted, name = self.complete(inputs), str(inputs["name"])
        if before and before["name"] != name:
            connection.execute(compose("ALTER ROLE {} RENAME TO {}", before["name"], name))
        found = self._row(connection, name)
        self._set_attributes(connection, name, wanted, found)
        self._set_memberships(connection, name, wanted.get("roles") or [])
        for key, setting in self._SETTINGS.items():
            self._set(connection, name, setting, int(wanted.get(key) or 0))
        if wanted.get("password") and (before is None or before.get("password") != wanted["password"]):
            self._set_password(connection, name, str(wanted["password"]))

    def read(self, connection: psycopg.Connection, known: Inputs) -> Properties | None:
        """Read it out of pg_roles; a superuser reads the verifier too."""
        row = self._row(connection, str(known["name"]))
        if row is None:
            return None
        settings = dict(item.split("=", 1) for item in row["rolconfig"] or ())
        outputs = {key: row[column] for key, _, column in self._ATTRIBUTES}
        outputs |= {key: int(settings.get(setting, 0)) for key, setting in self._SETTINGS.items()}
        outputs |= {
            "connectionLimit": row["rolconnlimit"],
            "encryptedPassword": True,
            "name": row["rolname"],
            "roles": self._memberships(connection, str(known["name"])) or None,
            "skipDropRole": bool(known.get("skipDropRole")),
            "skipReassignOwned": bool(known.get("skipReassignOwned")),
            "validUntil": row["valid_until"],
        }
        if known.get("password"):
            outputs["password"] = self._password(connection, known)
        return outputs

    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Give what it owns to the current user, and drop it."""
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
        self, connection: psycopg.Connection, name: str, wanted: Inputs, found: Mapping[str, Any] | None
    ) -> None:
        """Name only attributes that differ: some may be named by a superuser only, whatever they are set to."""
        words = [
            word if wanted[key] else f"NO{word}"
            for key, word, column in self._ATTRIBUTES
            if found is None or found[column] != wanted[key]
        ]
        options = sql.SQL(" ").join(
            [
                *map(sql.SQL, words),
                sql.SQL("CONNECTION LIMIT {}").format(sql.Literal(int(wanted["connectionLimit"]))),
                sql.SQL("VALID UNTIL {}").format(sql.Literal(wanted["validUntil"])),
            ]
        )
        connection.execute(compose("CREATE ROLE {} " if found is None else "ALTER ROLE {} ", name) + options)

    def _memberships(self, connection: psycopg.Connection, name: str) -> list[str]:
        query = "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = to_regrole(%s)"
        quoted = sql.Identifier(name).as_string()
        return [row[0].strip('"') for row in connection.execute(query.encode(), [quoted]).fetchall()]

    def _set_memberships(self, connection: psycopg.Connection, name: str, wanted: list[str]) -> None:
        held = set(self._memberships(connection, name))
        for role in sorted(held - set(wanted)):
            connection.execute(compose("REVOKE {} FROM {}", role, name))
        for role in sorted(set(wanted) - held):
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
        connection.execute(compose("ALTER ROLE {} PASSWORD ", name) + sql.Literal(password))

    def _password(self, connection: psycopg.Connection, known: Inputs) -> str:
        """Return the verifier that the server has, where it may be read and can be compared; else what is known."""
        stated = str(known["password"])
        may = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
        if may != (True,) or not stated.startswith(VERIFIER):
            return stated
        row = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [known["name"]]).fetchone()
        return str(row[0] or "") if row else ""


class Grant(Kind):
    """`postgresql:index/grant:Grant`: privileges on a database, a schema, or the tables or sequences in one."""

    required = ("database", "objectType", "privileges", "role")
    defaults: ClassVar[Inputs] = {"objects": None, "schema": None, "withGrantOption": False}
    replacing = frozenset({"database", "objectType", "role", "objects", "schema", "withGrantOption"})
    sets = frozenset({"privileges", "objects"})
    unserved: ClassVar[Inputs] = {"columns": None}
    delete_before_replace = True

    _KINDS: ClassVar[Mapping[str, str]] = {"table": "r", "sequence": "S"}  # of pg_class

    def problems(self, inputs: Inputs) -> Iterator[tuple[str, str]]:
        """Refuse object types that are not served, and combinations that mean nothing."""
        yield from super().problems(inputs)
        kind = inputs.get("objectType")
        if kind not in {"database", "schema", *self._KINDS}:
            yield "objectType", f"{kind!r} is not served in-tree; expected database, schema, table or sequence"
        if kind != "database" and not inputs.get("schema"):
            yield "schema", f"is required for a {kind}"
        if inputs.get("objects") and kind not in self._KINDS:
            yield "objects", f"means nothing for a {kind}"

    def id_of(self, inputs: Inputs) -> str:
        """Return `role_database[_schema]_objectType[_objects]`."""
        schema = [] if inputs["objectType"] == "database" else [inputs["schema"]]
        return "_".join([inputs["role"], inputs["database"], *schema, inputs["objectType"], *self._objects(inputs)])

    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Revoke everything, then grant what is wanted: nobody sees the moment between."""
        connection.execute(sql.SQL("REVOKE ALL PRIVILEGES ON {} FROM {}").format(self._target(inputs), role(inputs)))
        if inputs["privileges"]:
            grant = sql.SQL("GRANT {} ON {} TO {}").format(words(inputs), self._target(inputs), role(inputs))
            connection.execute(grant + grant_option(inputs))

    def read(self, connection: psycopg.Connection, known: Inputs) -> Properties | None:
        """Read the privileges; those of the first object that differs stand for all."""
        if not role_exists(connection, known["role"]):
            return None
        wanted = set(known["privileges"])
        differing = next((held for held in self._held(connection, known) if set(held) != wanted), known["privileges"])
        return self.of_inputs(known) | {"privileges": differing}

    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Revoke everything."""
        connection.execute(sql.SQL("REVOKE ALL PRIVILEGES ON {} FROM {}").format(self._target(outputs), role(outputs)))

    def _objects(self, inputs: Inputs) -> list[str]:
        return in_order(inputs.get("objects") or [])

    def _target(self, inputs: Inputs) -> sql.Composed:
        kind = inputs["objectType"]
        if kind in {"database", "schema"}:
            return compose(f"{kind.upper()} {{}}", inputs[kind])
        if names := self._objects(inputs):
            listed = sql.SQL(", ").join(sql.Identifier(inputs["schema"], name) for name in names)
            return sql.SQL("TABLE {}" if kind == "table" else "SEQUENCE {}").format(listed)
        return compose(f"ALL {kind.upper()}S IN SCHEMA {{}}", inputs["schema"])

    def _held(self, connection: psycopg.Connection, known: Inputs) -> Iterator[list[str]]:
        kind = known["objectType"]
        if kind == "database":
            query, names = "SELECT datname, datacl FROM pg_database WHERE datname = %(database)s", None
        elif kind == "schema":
            query, names = "SELECT nspname, nspacl FROM pg_namespace WHERE nspname = %(schema)s", None
        else:
            query = (
                "SELECT relname, relacl FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
                "WHERE nspname = %(schema)s AND relkind = %(kind)s"
            )
            names = set(self._objects(known))
        held = _HELD.format(query)
        values = {
            "database": known["database"],
            "schema": known.get("schema"),
            "kind": self._KINDS.get(kind),
            "grantee": role_oid(connection, known["role"]),
        }
        for name, privileges in connection.execute(held.encode(), values).fetchall():
            if not names or name in names:
                yield privileges


class DefaultPrivileges(Kind):
    """`postgresql:index/defaultPrivileges:DefaultPrivileges`: privileges on what an owner will create."""

    required = ("database", "objectType", "owner", "privileges", "role")
    defaults: ClassVar[Inputs] = {"schema": None, "withGrantOption": False}
    replacing = frozenset({"database", "objectType", "owner", "role", "schema", "withGrantOption"})
    sets = frozenset({"privileges"})

    _KINDS: ClassVar[Mapping[str, str]] = {  # of pg_default_acl
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
        if inputs.get("objectType") not in self._KINDS:
            yield "objectType", f"expected one of {', '.join(self._KINDS)}"

    def id_of(self, inputs: Inputs) -> str:
        """Return `role_database_schema_owner_objectType`."""
        schema = inputs.get("schema") or "noschema"
        return "_".join([inputs["role"], inputs["database"], schema, inputs["owner"], inputs["objectType"]])

    def apply(self, connection: psycopg.Connection, inputs: Inputs, before: Inputs | None) -> None:
        """Revoke everything, then grant what is wanted."""
        self.delete(connection, inputs)
        if inputs["privileges"]:
            objects = sql.SQL(f"{inputs['objectType'].upper()}S")
            grant = sql.SQL("GRANT {} ON {} TO {}").format(words(inputs), objects, role(inputs))
            connection.execute(self._alter(inputs) + grant + grant_option(inputs))

    def read(self, connection: psycopg.Connection, known: Inputs) -> Properties | None:
        """Read the privileges; none at all where some are wanted means that it is gone."""
        if not role_exists(connection, known["role"]):
            return None
        query = """
            SELECT array_remove(array_agg(privilege_type), NULL)
            FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(defaclacl)
            LEFT JOIN pg_namespace n ON n.oid = defaclnamespace
            WHERE defaclobjtype = %s AND grantee = %s AND defaclrole = to_regrole(%s)
              AND nspname IS NOT DISTINCT FROM %s
        """
        owner, grantee = sql.Identifier(known["owner"]).as_string(), role_oid(connection, known["role"])
        values = [self._KINDS[known["objectType"]], grantee, owner, known.get("schema")]
        row = connection.execute(query.encode(), values).fetchone()
        held = list(row[0] or ()) if row else []
        if not held and known["privileges"]:
            return None
        return self.of_inputs(known) | {"privileges": held}

    def delete(self, connection: psycopg.Connection, outputs: Inputs) -> None:
        """Revoke everything."""
        objects = sql.SQL(f"{outputs['objectType'].upper()}S")
        connection.execute(self._alter(outputs) + sql.SQL("REVOKE ALL ON {} FROM {}").format(objects, role(outputs)))

    def _alter(self, inputs: Inputs) -> sql.Composed:
        alter = compose("ALTER DEFAULT PRIVILEGES FOR ROLE {} ", inputs["owner"])
        return alter + compose("IN SCHEMA {} ", inputs["schema"]) if inputs.get("schema") else alter


KINDS: Mapping[str, Kind] = {
    "postgresql:index/role:Role": Role(),
    "postgresql:index/grant:Grant": Grant(),
    "postgresql:index/defaultPrivileges:DefaultPrivileges": DefaultPrivileges(),
}


class PostgresqlProvider(Provider):
    """Serves `KINDS`, one statement after the other: GRANTs on one object at the same time fail in PostgreSQL."""

    def __init__(self) -> None:
        self._config: Properties = {}
        self._one_at_a_time = threading.Lock()

    def configure(self, config: Properties) -> None:
        """Take where the server is: the inputs of `pulumi_postgresql.Provider`."""
        self._config = reveal(config)

    def check(self, urn: str, olds: Properties, news: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """Fill in the defaults; refuse what is not served."""
        kind = _kind(urn)
        given = {key: value for key, value in news.items() if key != DEFAULTS_KEY}
        if isinstance(kind, Role) and "name" not in given:
            given["name"] = olds.get("name") or f"{_name(urn)}-{secrets.token_hex(4)[:SUFFIX_DIGITS]}"
        defaults = {key: value for key, value in kind.defaults.items() if value and key not in given}
        filled = sorted({*defaults, *(given.keys() - news.keys())})
        return {DEFAULTS_KEY: filled, **given, **defaults}, list(kind.problems(given))

    def diff(self, urn: str, id_: str, inputs: Properties, outputs: Properties, news: Properties) -> Diff:
        """Compare what the state has with what is wanted; `refresh` is what looks at the server."""
        return _kind(urn).diff(outputs, news)

    def create(self, urn: str, inputs: Properties, timeout: float) -> tuple[str, Properties]:
        """Create it, or adopt what stands."""
        return _kind(urn).id_of(inputs), self._bring(urn, inputs, None)

    def update(self, urn: str, id_: str, outputs: Properties, news: Properties, timeout: float) -> Properties:
        """Bring it to the new inputs."""
        return self._bring(urn, news, outputs)

    def read(self, urn: str, id_: str, inputs: Properties, outputs: Properties) -> tuple[str, Properties, Properties]:
        """Look at the server."""
        kind = _kind(urn)
        with self._session(urn, kind.database_of(outputs)) as connection:
            found = kind.read(connection, outputs)
        if found is None:
            return "", {}, {}
        found = kind.outputs(found)
        drifted = kind.diff(found, inputs).changed
        known = {key: found.get(key, value) if key in drifted else value for key, value in inputs.items()}
        return id_, found, known

    def delete(self, urn: str, id_: str, outputs: Properties, timeout: float) -> None:
        """Remove it from the server."""
        kind = _kind(urn)
        with self._session(urn, kind.database_of(outputs)) as connection:
            kind.delete(connection, outputs)

    def _bring(self, urn: str, inputs: Properties, before: Properties | None) -> Properties:
        kind = _kind(urn)
        with self._session(urn, kind.database_of(inputs)) as connection:
            kind.apply(connection, inputs, before)
            return kind.outputs(kind.read(connection, kind.complete(inputs)) or inputs)

    @contextmanager
    def _session(self, urn: str, database: str | None) -> Iterator[psycopg.Connection]:
        """Open a transaction in a database, the provider's own by default."""
        conninfo = self._conninfo(database)
        try:
            with (
                self._one_at_a_time,
                connect(conninfo, purpose="access") as connection,
                translate_errors(f"{type(_kind(urn)).__name__} {_name(urn)}"),
                connection.transaction(),
            ):
                yield connection
        except DatabaseError as error:
            raise ProviderError(str(error)) from error

    def _conninfo(self, database: str | None) -> str:
        config = self._config
        if UNKNOWN in (config.get("host"), config.get("password"), config.get("sslrootcert")):
            raise ProviderError("the provider's connection is not known yet; run `up`")
        return make_conninfo(
            host=config.get("host"),
            port=config.get("port"),
            user=config.get("username"),
            password=config.get("password"),
            dbname=database or config.get("database") or "postgres",
            sslmode=config.get("sslmode"),
            sslrootcert=config.get("sslrootcert"),
        )


def compose(statement: str, *names: str) -> sql.Composed:
    """Return a statement with names in place of its `{}`."""
    return sql.SQL(statement).format(*map(sql.Identifier, names))


def words(inputs: Inputs) -> sql.Composed:
    """Return the privileges as SQL; only letters may stand there."""
    if bad := [word for word in inputs["privileges"] if not str(word).isalpha()]:
        raise ProviderError(f"privileges: {bad[0]!r} is no privilege")
    return sql.SQL(", ").join(map(sql.SQL, inputs["privileges"]))


def role(inputs: Inputs) -> sql.Composable:
    """Return the grantee; `public` is PostgreSQL's PUBLIC."""
    return sql.SQL("PUBLIC") if inputs["role"] == PUBLIC else sql.Identifier(inputs["role"])


def grant_option(inputs: Inputs) -> sql.SQL:
    """Return how a grant ends."""
    return sql.SQL(" WITH GRANT OPTION" if inputs.get("withGrantOption") else "")


def role_exists(connection: psycopg.Connection, name: str) -> bool:
    """Tell whether there is such a role; PUBLIC always is."""
    return name == PUBLIC or role_oid(connection, name) is not None


def role_oid(connection: psycopg.Connection, name: str) -> int | None:
    """Return a role's oid, 0 for PUBLIC."""
    if name == PUBLIC:
        return 0
    row = connection.execute("SELECT oid FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    return int(row[0]) if row else None


def in_order(values: list[str]) -> list[str]:
    """Return a set's members in the order in which they are in an id: by the digits of their CRC-32."""
    return sorted(set(values), key=lambda value: str(zlib.crc32(value.encode())))


def _kind(urn: str) -> Kind:
    type_ = urn.split("::")[2].rpartition("$")[2]
    if type_ not in KINDS:
        raise ProviderError(f"{type_} is not served in-tree; install the postgresql plugin and run by the Pulumi CLI")
    return KINDS[type_]


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]
