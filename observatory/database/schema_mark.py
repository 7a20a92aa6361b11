"""A mark of the ledger of migrations, which differs once anything was applied or recorded."""

from __future__ import annotations

import hashlib

import psycopg
from psycopg import sql

_LEDGERS = """
    SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
    WHERE nspname = 'observatory' AND relkind = 'r' AND (relname LIKE 'schema\\_%' OR relname = 'repeatable_migrations')
    ORDER BY relname
"""
_ROWS = "SELECT md5(coalesce(string_agg(entry::text, E'\\n' ORDER BY entry::text), '')) FROM observatory.{} AS entry"


def schema_mark(connection: psycopg.Connection) -> str:
    """Return the mark; a database without a ledger has one, too."""
    found = hashlib.sha256()
    for (name,) in connection.execute(_LEDGERS).fetchall():
        [digest] = connection.execute(sql.SQL(_ROWS).format(sql.Identifier(name))).fetchone() or ("",)
        found.update(f"{name} {digest}\n".encode())
    return found.hexdigest()
