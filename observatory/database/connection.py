"""Connections to PostgreSQL: timeouts, keepalives, session names and long socket paths.

Opens and closes single connections. Does not pool them: an operation needs only a few.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from observatory.database.error_translation import error_summary
from observatory.database.errors import NoSuchDatabaseError, PasswordRefusedError, UnreachableError
from observatory.files.sockets import short_path
from observatory.interruption.parallel import ended_by

CONNECT_TIMEOUT_S = 10
CANCEL_TIMEOUT_S = 5
DEFAULT_PORT = 5432
MAX_APPLICATION_NAME = 63  # bytes: NAMEDATALEN - 1 in PostgreSQL
MAX_SOCKET_PATH = 107  # bytes: sizeof(sockaddr_un.sun_path) - 1 on Linux, unix(7)

Parameters = dict[str, Any]  # as conninfo_to_dict returns them

# Detects a dead peer after 30 + 3 * 10 s, also on an idle connection.
_DEFAULTS: Parameters = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

# Settings of every session that has settings of its own: role and database may have others for their programs.
SESSION_SETTINGS: Mapping[str, str] = {
    # Texts of the server as this program and psycopg read them, and of files as the SQL parser reads them.
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    # Their limits are for everyday queries; and a session that only holds a lock is idle.
    "statement_timeout": "0",
    "idle_session_timeout": "0",
}

# PostgreSQL's own messages. The text is all there is: libpq has no SQLSTATE of a connection that was refused.
_REFUSALS: Mapping[type[UnreachableError], re.Pattern[str]] = {
    PasswordRefusedError: re.compile("password authentication failed"),
    NoSuchDatabaseError: re.compile(
        r"""FATAL:  (database ".*" does not exist|cannot connect to invalid database ".*")$""", re.MULTILINE
    ),
}


@contextlib.contextmanager
def connect(conninfo: str, *, purpose: str, settings: Mapping[str, str] | None = None) -> Iterator[psycopg.Connection]:
    """Open an autocommit connection and close it at the end of the block.

    A unix socket path longer than the system limit is opened through a descriptor of its directory.

    Args:
        conninfo: libpq connection string or URI; its parameters override this module's defaults.
        purpose: shown in pg_stat_activity as `observatory:<purpose>`.
        settings: server settings of the session, besides `SESSION_SETTINGS`; `RESET ALL` returns to them. None: those
            of role and database, as a pooler needs it.

    Raises:
        UnreachableError: the string is malformed, the server is unreachable, or it rejected the login.
    """
    parameters = _parameters(conninfo)
    parameters["application_name"] = f"observatory:{purpose}"[:MAX_APPLICATION_NAME]
    parameters["client_encoding"] = "UTF8"  # SQL is sent as bytes
    if settings is not None:
        own = " ".join(f"-c {name}={_option_value(value)}" for name, value in {**SESSION_SETTINGS, **settings}.items())
        parameters["options"] = f"{parameters.get('options') or ''} {own}".strip()
    with _reachable_host(parameters) as reachable, _open(reachable, describe(conninfo)) as connection:
        yield connection


@contextlib.contextmanager
def cancellable(connection: psycopg.Connection) -> Iterator[None]:
    """Let the statements of the block be cancelled when the work of this thread ends: see `interruption.parallel`."""
    with ended_by(partial(_cancel, connection)):
        yield


def describe(conninfo: str) -> str:
    """Return the target of a connection string without its password: `database "d" at host:port as "user"`."""
    parameters = _parameters(conninfo)
    host, port = parameters.get("host") or "the default socket", parameters.get("port") or DEFAULT_PORT
    login = f' as "{user}"' if (user := parameters.get("user")) else ""
    name = f'database "{dbname}"' if (dbname := parameters.get("dbname")) else "the default database"
    return f"{name} at {host}:{port}{login}"


def has_password(conninfo: str) -> bool:
    """Return whether a connection string contains a password, also that of a key, and must be kept secret."""
    parameters = _parameters(conninfo)
    return any(parameters.get(name) for name in ("password", "sslpassword"))


def with_database(conninfo: str, name: str) -> str:
    """Return the connection string with another database of the same server."""
    _parameters(conninfo)
    return make_conninfo(conninfo, dbname=name)


def with_parameters(conninfo: str, **parameters: int | str) -> str:
    """Return the connection string with other parameters of libpq."""
    _parameters(conninfo)
    return make_conninfo(conninfo, **parameters)


def _cancel(connection: psycopg.Connection) -> None:
    with contextlib.suppress(psycopg.Error):  # the connection is broken, and its statement ends by itself
        connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)


def _parameters(conninfo: str) -> Parameters:
    try:
        return {**_DEFAULTS, **conninfo_to_dict(conninfo)}
    except psycopg.ProgrammingError as error:
        # psycopg's message may quote the string and with it a password.
        raise UnreachableError(
            "The connection string is malformed. Write it as postgresql://user@host:port/database, with special "
            "characters percent-encoded, or as 'host=… port=… user=… dbname=…'"
        ) from error


def _option_value(value: str) -> str:
    """Escape a value for the startup packet's options, where a space separates arguments."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


@contextlib.contextmanager
def _reachable_host(parameters: Parameters) -> Iterator[Parameters]:
    host = str(parameters.get("host") or "")
    socket_path = f"{host}/.s.PGSQL.{parameters.get('port') or DEFAULT_PORT}"
    if not host.startswith("/") or "," in host or len(os.fsencode(socket_path)) <= MAX_SOCKET_PATH:
        yield parameters
        return
    with contextlib.ExitStack() as stack:
        try:
            # Stays open as long as the connection: cancelling a query connects to the same path again.
            alias = stack.enter_context(short_path(Path(host)))
        except OSError as error:
            raise UnreachableError(
                f"The socket directory {host} cannot be opened: {error.strerror}. Start the server, then run again"
            ) from error
        yield {**parameters, "host": alias}


def _open(parameters: Parameters, place: str) -> psycopg.Connection:
    try:
        return psycopg.connect(make_conninfo(**parameters), autocommit=True)
    except psycopg.OperationalError as error:
        message = str(error)
        kind = next((each for each, pattern in _REFUSALS.items() if pattern.search(message)), UnreachableError)
        raise kind(f"Cannot connect to {place}: {error_summary(error)}. {_login_remedy(message)}") from error


def _login_remedy(message: str) -> str:
    if "authentication failed" in message or "no password supplied" in message:
        return "Check the user and the password"
    if any(words in message for words in ("invalid ", "SSL", "certificate file", "definition of service")):
        return "Check the parameters of the connection"
    if "does not exist" in message:
        return "Check the names of user and database, or create them"
    return "Check that the server runs and listens at this address"
