"""The group roles: the only ones that a migration may grant privileges to. Their logins inherit the privileges."""

from __future__ import annotations

GROUP_ROLES = ("app", "readonly", "admin")
ENGINE_SCHEMAS = ("observatory", "audit")  # a migration grants nothing in them: `grant_access` does
SECRET_TABLES = frozenset({"api_keys"})  # not for readers, and no migration grants more
