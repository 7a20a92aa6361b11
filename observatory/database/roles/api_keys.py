"""API keys of the storage service: created and revoked here, checked by the service.

The database stores a key's SHA-256 and its first characters, so a reader of the table cannot use the key. A plain hash
is sufficient for a key of 256 random bits, which no dictionary contains.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from observatory.database.connection import connect
from observatory.database.error_translation import translate_errors

KEY_PREFIX = "obs_"
KEY_BYTES = 32
SHOWN_CHARACTERS = 12

_INSERT = """
    INSERT INTO api_keys (key_hash, key_prefix, name, scopes, rate_limit_rpm) VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (key_hash) DO NOTHING
"""

_ACTIVE = """
    SELECT FROM api_keys WHERE key_hash = %s AND is_active AND (expires_at IS NULL OR expires_at > now())
"""


def create_api_key(
    conninfo: str, *, name: str, scopes: Sequence[str], rate_limit_rpm: int = 60, key: str | None = None
) -> str:
    """Create an API key, or register an existing one.

    Args:
        conninfo: as the role that owns the tables.
        name: label of the key.
        scopes: permissions of the key; the service defines them.
        rate_limit_rpm: requests per minute.
        key: an existing key to register; nothing changes if the database has it, active or revoked. None creates a
            new key.

    Returns:
        The key. It is not stored.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement, for example because migration 001 is not applied.
        UnreachableError: the connection failed.
    """
    key = key or KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    values = [_digest(key), key[:SHOWN_CHARACTERS], name, list(scopes), rate_limit_rpm]
    with connect(conninfo, purpose="api-keys") as connection, translate_errors(f'API key "{name}"'):
        connection.execute(_INSERT, values)
    return key


def api_key_is_active(conninfo: str, *, key: str) -> bool:
    """Return whether the database has the key, neither revoked nor expired.

    Raises:
        StatementFailedError: PostgreSQL rejected the statement.
        UnreachableError: the connection failed.
    """
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("look-up of an API key"):
        return connection.execute(_ACTIVE, [_digest(key)]).fetchone() is not None


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
        return connection.execute(update, [_digest(key)]).rowcount > 0


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
