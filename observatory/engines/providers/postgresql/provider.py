"""The provider of `pulumi_postgresql`'s resource types, for either engine."""

# ruff: noqa: ARG002 - the signatures of the engine's interface

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from observatory.engines.embedded.provider import Diff, Provider, ProviderError
from observatory.engines.embedded.values import UNKNOWN, Properties, reveal
from observatory.engines.providers.postgresql.connection import transaction
from observatory.engines.providers.postgresql.default_privileges import DefaultPrivileges
from observatory.engines.providers.postgresql.grant import Grant
from observatory.engines.providers.postgresql.resource_type import DEFAULTS_KEY, INSTALL_PLUGIN, ResourceType
from observatory.engines.providers.postgresql.role import Role

_SUFFIX_DIGITS = 7  # of the name that a role without a name gets, as in the plugin

RESOURCE_TYPES: Mapping[str, ResourceType] = {
    "postgresql:index/role:Role": Role(),
    "postgresql:index/grant:Grant": Grant(),
    "postgresql:index/defaultPrivileges:DefaultPrivileges": DefaultPrivileges(),
}


class PostgresqlProvider(Provider):
    """Provides `RESOURCE_TYPES`, one resource at a time: concurrent GRANTs on one object fail in PostgreSQL."""

    def __init__(self) -> None:
        self._config: Properties = {}
        self._one_at_a_time = threading.Lock()

    def configure(self, config: Properties) -> None:
        """Take the connection parameters: the inputs of `pulumi_postgresql.Provider`."""
        self._config = reveal(config)

    def check(self, urn: str, olds: Properties, news: Properties) -> tuple[Properties, list[tuple[str, str]]]:
        """Fill in the defaults, and refuse unsupported inputs."""
        resource_type = _resource_type(urn)
        given = {key: value for key, value in news.items() if key != DEFAULTS_KEY}
        if isinstance(resource_type, Role) and "name" not in given:
            given["name"] = olds.get("name") or f"{_name(urn)}-{secrets.token_hex(4)[:_SUFFIX_DIGITS]}"
        defaults = {key: value for key, value in resource_type.defaults.items() if value and key not in given}
        filled = sorted({*defaults, *(given.keys() - news.keys())})
        return {DEFAULTS_KEY: filled, **given, **defaults}, list(resource_type.problems(given))

    def diff(self, urn: str, id_: str, inputs: Properties, outputs: Properties, news: Properties) -> Diff:
        """Compare the state with the new inputs. Only `read` reads the server."""
        return _resource_type(urn).diff(outputs, news)

    def create(self, urn: str, inputs: Properties, timeout: float) -> tuple[str, Properties]:
        """Create the resource; adopt a role that exists."""
        return _resource_type(urn).id_of(inputs), self._apply(urn, inputs, None)

    def update(self, urn: str, id_: str, outputs: Properties, news: Properties, timeout: float) -> Properties:
        """Apply the new inputs."""
        return self._apply(urn, news, outputs)

    def read(self, urn: str, id_: str, inputs: Properties, outputs: Properties) -> tuple[str, Properties, Properties]:
        """Read the resource from the server; by its id alone where the engine has nothing else (`get`, `import`)."""
        resource_type = _resource_type(urn)
        known = outputs or inputs or resource_type.named_by(id_)
        if not known:
            kind = type(resource_type).__name__
            raise ProviderError(
                f"a {kind} cannot be read by its id ({id_}); declare it, and `up` adopts the existing one"
            )
        with self._transaction(urn, resource_type.database_of(known)) as connection:
            found = resource_type.read(connection, known)
        if found is None:
            return "", {}, {}
        found = resource_type.outputs(found)
        if not inputs:
            return id_, found, _given(resource_type, found)
        drifted = resource_type.diff(found, inputs).changed
        current = {key: found.get(key, value) if key in drifted else value for key, value in inputs.items()}
        return id_, found, current

    def delete(self, urn: str, id_: str, outputs: Properties, timeout: float) -> None:
        """Delete the resource from the server."""
        resource_type = _resource_type(urn)
        with self._transaction(urn, resource_type.database_of(outputs)) as connection:
            resource_type.delete(connection, outputs)

    def _apply(self, urn: str, inputs: Properties, before: Properties | None) -> Properties:
        resource_type = _resource_type(urn)
        with self._transaction(urn, resource_type.database_of(inputs)) as connection:
            resource_type.apply(connection, inputs, before)
            return resource_type.outputs(resource_type.read(connection, resource_type.complete(inputs)) or inputs)

    @contextmanager
    def _transaction(self, urn: str, database: str | None) -> Iterator[psycopg.Connection]:
        """Open a transaction in a database, by default the database of the provider's configuration."""
        resource, parameters = f"{type(_resource_type(urn)).__name__} {_name(urn)}", self._parameters(database)
        with self._one_at_a_time, transaction(parameters, resource) as connection:
            yield connection

    def _parameters(self, database: str | None) -> dict[str, Any]:
        config = self._config
        if UNKNOWN in (config.get("host"), config.get("password"), config.get("sslrootcert")):
            raise ProviderError("the provider's connection is not known before `up` has created the server; run `up`")
        return {
            "host": config.get("host"),
            "port": config.get("port"),
            "user": config.get("username"),
            "password": config.get("password"),
            "dbname": database or config.get("database") or "postgres",
            "sslmode": config.get("sslmode"),
            "sslrootcert": config.get("sslrootcert"),
        }


def _given(resource_type: ResourceType, found: Properties) -> Properties:
    """Return the inputs that a program must give to declare what was found: those that are not defaults."""
    selected = resource_type.select_inputs(found)
    given = {
        key: value for key, value in selected.items() if (value or None) != (resource_type.defaults.get(key) or None)
    }
    return {DEFAULTS_KEY: sorted(selected.keys() - given.keys()), **given}


def _resource_type(urn: str) -> ResourceType:
    type_ = urn.split("::")[2].rpartition("$")[2]
    if type_ not in RESOURCE_TYPES:
        raise ProviderError(f"{type_} is not supported here; {INSTALL_PLUGIN}")
    return RESOURCE_TYPES[type_]


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]
