"""API keys of the storage service: created and revoked here, checked by the service.

The database stores a key's SHA-256 and its first characters, so a reader of the table cannot use the key. A plain hash
is sufficient for a key of 256 random bits, which no dictionary contains.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import psycopg
from psycopg.rows import class_row

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors

KEY_PREFIX = "obs_"
KEY_BYTES = 32
SHOWN_CHARACTERS = 12

_INSERT = """
    INSERT INTO api_keys (key_hash, key_prefix, name, scopes, rate_limit_rpm, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (key_hash) DO NOTHING
"""
_STORED = """
    SELECT id::text AS id, key_prefix AS prefix, name, coalesce(scopes, '{}') AS scopes, rate_limit_rpm, created_at,
           expires_at, last_used_at,
           CASE WHEN NOT is_active THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'active' END AS state
    FROM api_keys
"""

_ACTIVE = """
    SELECT FROM api_keys WHERE key_hash = %s AND is_active AND (expires_at IS NULL OR expires_at > now())
"""


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """A key as the database has it.

    Attributes:
        id: of the key; safe to log.
        prefix: the first characters of the key.
        name: label of the key.
        scopes: permissions of the key.
        rate_limit_rpm: requests per minute.
        created_at: when it was created.
        expires_at: when it expires; None: never.
        last_used_at: when a request last had it, to the minute; None: never.
        state: whether the service accepts it.
    """

    id: str
    prefix: str
    name: str
    scopes: list[str]
    rate_limit_rpm: int
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    state: Literal["active", "revoked", "expired"]


def create_api_key(
    conninfo: str,
    *,
    name: str,
    scopes: Sequence[str],
    rate_limit_rpm: int = 60,
    key: str | None = None,
    expires_at: datetime | None = None,
) -> str:
    """Create an API key, or register an existing one.

    Args:
        conninfo: as the role that owns the tables.
        name: label of the key.
        scopes: permissions of the key; the service defines them.
        rate_limit_rpm: requests per minute.
        key: an existing key to register; nothing changes if the database has it, active or revoked. None creates a
            new key.
        expires_at: when the service no longer accepts it; None: never.

    Returns:
        The key. It is not stored.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement, for example because migration 001 is not applied.
        UnreachableError: the connection failed.
    """
    key = key or new_key()
    with connect(conninfo, purpose="api-keys") as connection, translate_errors(f'API key "{name}"'):
        insert_key(connection, key, name=name, scopes=scopes, rate_limit_rpm=rate_limit_rpm, expires_at=expires_at)
    return key


def new_key() -> str:
    """Return a random key, which no database has yet."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def insert_key(
    connection: psycopg.Connection,
    key: str,
    *,
    name: str,
    scopes: Sequence[str],
    rate_limit_rpm: int,
    expires_at: datetime | None,
) -> None:
    """Store a key by its digest, unless the database has it.

    Raises:
        psycopg.Error: PostgreSQL rejected the statement.
    """
    values = [key_digest(key), key[:SHOWN_CHARACTERS], name, list(scopes), rate_limit_rpm, expires_at]
    connection.execute(_INSERT, values)


def key_digest(key: str) -> str:
    """Return what the database stores instead of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def api_key_is_active(conninfo: str, *, key: str) -> bool:
    """Return whether the database has the key, neither revoked nor expired.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement.
        UnreachableError: the connection failed.
    """
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("look-up of an API key"):
        return connection.execute(_ACTIVE, [key_digest(key)]).fetchone() is not None


def revoke_api_key(conninfo: str, *, key: str) -> bool:
    """Revoke a key; revoking it again changes nothing.

    Returns:
        Whether the database has the key.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement.
        UnreachableError: the connection failed.
    """
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("revocation of an API key"):
        update = "UPDATE api_keys SET is_active = false WHERE key_hash = %s"
        return connection.execute(update, [key_digest(key)]).rowcount > 0


def list_api_keys(conninfo: str, *, key: str | None = None) -> list[StoredKey]:
    """Return the keys of the database, newest first.

    Args:
        conninfo: as a role that may read them.
        key: only this key, and those with this id or prefix; None: all.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement.
        UnreachableError: the connection failed.
    """
    chosen = "" if key is None else " WHERE id::text = %(key)s OR key_prefix = %(key)s OR key_hash = %(hash)s"
    values = {"key": key, "hash": key_digest(key or "")}
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("list of API keys"):
        cursor = connection.cursor(row_factory=class_row(StoredKey))
        return cursor.execute(f"{_STORED}{chosen} ORDER BY created_at DESC, id".encode(), values).fetchall()


def revoke_api_key_by_id(conninfo: str, *, id_: str) -> None:
    """Revoke the key with an id; revoking it again changes nothing.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement.
        UnreachableError: the connection failed.
    """
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("revocation of an API key"):
        connection.execute("UPDATE api_keys SET is_active = false WHERE id::text = %s", [id_])
