"""API keys of the storage service: create, list and revoke them; each change is in the journal and the audit.

On AWS too, from where the database is reachable. The service checks a key at most 5 s after it last did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from observatory import database
from observatory.database import StoredKey
from observatory.operations.delivery_journal import audited, record_event
from observatory.operations.migration_targets import database_target
from observatory.platforms.errors import OperationError
from observatory.workspace import Workspace

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_NAME_BYTES = 512  # api_keys_name_bytes in migration 001


@dataclass(frozen=True, kw_only=True)
class CreatedKey:
    """A new key: `key` itself, which is stored nowhere, and what the database has of it."""

    key: str
    stored: StoredKey


def create_key(
    workspace: Workspace,
    *,
    name: str,
    scopes: Sequence[Scope] = SCOPES,
    rate_limit_rpm: int = 60,
    expires_in_days: float | None = None,
) -> CreatedKey:
    """Create a key of the storage service.

    Args:
        workspace: of the stack.
        name: label of the key, for example who holds it.
        scopes: what it may do.
        rate_limit_rpm: requests per minute.
        expires_in_days: days after which the service no longer accepts it; None: never.

    Raises:
        OperationError: the stack was never up, or the name is empty or too long.
        DatabaseError: the database does not answer, or rejected a statement; there is no new key.
    """
    if not name.strip() or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise OperationError(f"the name of a key has 1 to {MAX_NAME_BYTES} bytes on one line: {name[:40]!r} does not")
    conninfo = database_target(workspace).conninfo
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    wanted = {"name": name, "scopes": list(scopes), "rate_limit_rpm": rate_limit_rpm, "expires_at": expires_at}
    with audited(workspace, "key-creation", **wanted):
        key = database.create_api_key(
            conninfo, name=name, scopes=scopes, rate_limit_rpm=rate_limit_rpm, expires_at=expires_at
        )
        [stored] = [
            each for each in database.list_api_keys(conninfo, key=key) if each.prefix == key[: len(each.prefix)]
        ]
    record_event(workspace, "key-created", key=stored.id, prefix=stored.prefix, **wanted)
    return CreatedKey(key=key, stored=stored)


def list_keys(workspace: Workspace) -> list[StoredKey]:
    """Return the keys of the stack, newest first, also revoked and expired ones.

    Raises:
        StackNotUpError: the stack was never up.
        DatabaseError: the database does not answer.
    """
    return database.list_api_keys(database_target(workspace).conninfo)


def revoke_key(workspace: Workspace, key: str) -> StoredKey:
    """Revoke a key, and return it; the service refuses it within 5 s.

    Args:
        workspace: of the stack.
        key: its id, or its prefix if only one key has that.

    Raises:
        OperationError: the stack was never up, or no key or several have this id or prefix; nothing was changed.
        DatabaseError: the database does not answer, or rejected a statement.
    """
    conninfo = database_target(workspace).conninfo
    found = database.list_api_keys(conninfo, key=key)
    if len(found) != 1:
        reason = "several keys have this prefix, use an id" if found else "there is no such key"
        raise OperationError(f"{reason}: `observatory key list -e {workspace.stack}` lists their ids and prefixes")
    chosen = found[0]
    with audited(workspace, "key-revocation", key=chosen.id, name=chosen.name):
        database.revoke_api_key_by_id(conninfo, id_=chosen.id)
    record_event(workspace, "key-revoked", key=chosen.id, prefix=chosen.prefix, name=chosen.name)
    [revoked] = database.list_api_keys(conninfo, key=chosen.id)
    return revoked
