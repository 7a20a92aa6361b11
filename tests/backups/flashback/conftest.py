"""Two databases with the product's schema: the earlier state and the live one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from observatory.backups.flashback.difference import Difference, Request
from observatory.backups.flashback.flashback import compare_table
from tests.support.postgres import PostgresServer
from tests.support.sample_pair import execute, sample_pair, select

TABLES = ("llm_traces", "llm_metrics", "llm_logs", "users", "projects", "model_pricing")
PLENTY = 2**50


@dataclass(frozen=True, kw_only=True)
class States:
    """The earlier state and the live database."""

    clone: str
    live: str

    def both(self, sql: str) -> None:
        """Run statements in both; they must not depend on the time."""
        for conninfo in (self.clone, self.live):
            execute(conninfo, sql)

    def now(self, sql: str) -> None:
        """Run statements in the live database only."""
        execute(self.live, sql)

    def then(self, sql: str) -> None:
        """Run statements in the earlier state only."""
        execute(self.clone, sql)

    def compare(self, table: str, where: str | None = None, *, restore: bool = False, **options: Any) -> Difference:
        request = Request(table=table, where=where, restore=restore)
        return compare_table(self.clone, self.live, request, **{"free_bytes": lambda: PLENTY, **options})

    def rows(self, table: str, *, live: bool = True) -> list[str]:
        query = f"SELECT r::text FROM {table} r ORDER BY 1"
        return [row[0] for row in select(self.live if live else self.clone, query)]


@pytest.fixture(scope="module")
def pair(postgres: PostgresServer) -> Iterator[States]:
    with sample_pair(postgres) as pair:
        yield States(clone=pair.source, live=pair.target)


@pytest.fixture
def states(pair: States) -> Iterator[States]:
    """Both states, without rows; schema `own` is removed after the test."""
    yield pair
    pair.both(f"TRUNCATE {', '.join(TABLES)} CASCADE; DROP SCHEMA IF EXISTS own CASCADE")
