"""API keys of the storage service: made and revoked here, checked by the service.

The database holds a key's SHA-256 and its first characters; whoever reads the table cannot use what they read. A plain
hash is enough for a key of 256 random bits, which no dictionary holds.
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
    """Make an API key known to the database.

    Args:
        conninfo: as the role that owns the tables.
        name: for people.
        scopes: what the key may do, as the service names it.
        rate_limit_rpm: requests per minute.
        key: an existing key, to register; the call changes nothing if the database has it, revoked or not. None makes a
            new one.

    Returns:
        The key. It is stored nowhere.

    Raises:
        StatementFailedError: PostgreSQL refused, for example because migration 001 is not applied.
        UnreachableError: no connection.
    """
    key = key or KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    values = [_digest(key), key[:SHOWN_CHARACTERS], name, list(scopes), rate_limit_rpm]
    with connect(conninfo, purpose="api-keys") as connection, translate_errors(f'API key "{name}"'):
        connection.execute(_INSERT, values)
    return key


def api_key_is_active(conninfo: str, *, key: str) -> bool:
    """Whether the database has the key, not revoked and not expired.

    Raises:
        StatementFailedError: PostgreSQL refused.
        UnreachableError: no connection.
    """
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("look-up of an API key"):
        return connection.execute(_ACTIVE, [_digest(key)]).fetchone() is not None


def revoke_api_key(conninfo: str, *, key: str) -> bool:
    """Make a key unusable; revoking it again changes nothing.

    Returns:
        Whether the database has the key.

    Raises:
        StatementFailedError: PostgreSQL refused.
        UnreachableError: no connection.
    """
    with connect(conninfo, purpose="api-keys") as connection, translate_errors("revocation of an API key"):
        update = "UPDATE api_keys SET is_active = false WHERE key_hash = %s"
        return connection.execute(update, [_digest(key)]).rowcount > 0


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
