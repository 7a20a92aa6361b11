"""Opens the provider's connections, and turns psycopg's exceptions into ProviderError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg

from observatory.engines.embedded.provider import ProviderError
from observatory.engines.providers.postgresql.statements import log_changes
from observatory.files.sockets import short_path

_DEFAULT_PORT = 5432
_OPTIONS: dict[str, Any] = {
    "application_name": "observatory:access",
    "connect_timeout": 10,
    "keepalives_idle": 30,  # with the next two, a server that is gone is noticed after 60 s
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
_REMEDIES: dict[type[psycopg.Error], str] = {
    pg.InsufficientPrivilege: "Connect as the role that owns the objects, or have the missing privilege granted",
    pg.ReadOnlySqlTransaction: "Connect to the primary, which accepts writes",
    pg.DiskFull: "Free space on the server's disk, then run again",
    pg.OutOfMemory: "Give the server more memory, then run again",
    pg.TooManyConnections: "Close sessions or raise max_connections, then run again",
}
_OTHER_REMEDY = "Nothing of the resource was changed: correct it and run again"


@contextmanager
def transaction(parameters: dict[str, Any], resource: str) -> Iterator[psycopg.Connection]:
    """Connect, and hold a transaction open until the end of the block.

    Args:
        parameters: libpq's connection parameters; None leaves one to libpq.
        resource: The resource's type and name, for error messages.

    Raises:
        ProviderError: the server cannot be reached, refuses the login or refuses a statement.
    """
    with _connect(parameters) as connection:
        try:
            with connection.transaction():
                log_changes(connection)
                yield connection
        except psycopg.Error as error:
            raise ProviderError(f"{resource}: {_describe(error)}") from error


@contextmanager
def _connect(parameters: dict[str, Any]) -> Iterator[psycopg.Connection]:
    host = str(parameters.get("host") or "")
    try:
        with short_path(Path(host)) if host.startswith("/") else nullcontext(host) as reachable:
            connection = psycopg.connect(**_OPTIONS, **{**parameters, "host": reachable or None}, autocommit=True)
    except (psycopg.OperationalError, OSError) as error:
        place = f"{host or 'the default socket'}:{parameters.get('port') or _DEFAULT_PORT}"
        target = f'database "{parameters.get("dbname")}" at {place} as "{parameters.get("user")}"'
        reason = " ".join(str(error).split()).rstrip(".?")
        raise ProviderError(f"cannot connect to {target}: {reason}. {_login_remedy(reason)}") from error
    with connection:
        yield connection


def _login_remedy(reason: str) -> str:
    if "authentication failed" in reason or "no password supplied" in reason:
        return "Check the user name and the password"
    if "does not exist" in reason:
        return "Check that the user and the database exist"
    return "Check that the server runs and accepts connections at this address"


def _describe(error: psycopg.Error) -> str:
    """Return the server's message, its SQLSTATE and a remedy."""
    primary = error.diag.message_primary
    if primary is None:
        message = " ".join(str(error).split()).rstrip(".?")
        return f"the connection was lost: {message}. Nothing was committed: run again"
    parts = (primary, error.diag.message_detail, error.diag.message_hint)
    message = "; ".join(part.rstrip(".") for part in parts if part)
    remedy = next((text for kind, text in _REMEDIES.items() if isinstance(error, kind)), _OTHER_REMEDY)
    return f"{message} (SQLSTATE {error.sqlstate}). {remedy}"
