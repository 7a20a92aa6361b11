"""Privileges that roles have besides those of their profiles; `observatory.database.migration_grants` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Target(NamedTuple):
    """A role and a relation; with a column, the privileges are on the column."""

    role: str
    schema: str
    relation: str
    column: str | None = None


Grants = Mapping[Target, frozenset[str]]
