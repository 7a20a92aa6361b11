"""Two databases with the product's schema: the source and the target of a masked sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from observatory.database import deploy
from observatory.database.masked_sample import Sample, copy_sample
from tests.support.postgres import PostgresServer

KEY = "0123456789abcdef"
SHIPPED = Path(__file__).parents[2] / "migrations"
TABLES = ("llm_traces", "llm_logs", "users", "projects", "model_pricing")


@dataclass(frozen=True, kw_only=True)
class Pair:
    source: str
    target: str

    def copy(self, fraction: float = 0.5, key: str = KEY, **options: Any) -> Sample:
        return copy_sample(self.source, self.target, fraction=fraction, key=key, **options)

    def empty(self) -> None:
        for conninfo in (self.source, self.target):
            execute(conninfo, f"TRUNCATE llm_metrics, {', '.join(TABLES)} CASCADE; DROP SCHEMA IF EXISTS own CASCADE")
        for table in ("sample_windows", "sample_days", "sample_key"):
            execute(self.target, f"DROP TABLE IF EXISTS observatory.{table}")


@contextlib.contextmanager
def sample_pair(postgres: PostgresServer) -> Iterator[Pair]:
    """Yield two databases with all migrations."""
    with postgres.fresh_database() as source, postgres.fresh_database() as target:
        conninfos = [postgres.conninfo(dbname=name) for name in (source, target)]
        for conninfo in conninfos:
            deploy(conninfo, migrations=SHIPPED, actor="tester", deployment_id="test")
        yield Pair(source=conninfos[0], target=conninfos[1])


def execute(conninfo: str, sql: str, rows: Any = None) -> None:
    """Run statements, or one statement for each of `rows`."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if rows is None:
            connection.execute(sql.encode())
        else:
            connection.cursor().executemany(sql.encode(), rows)


def select(conninfo: str, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with psycopg.connect(conninfo) as connection:
        return connection.execute(sql.encode()).fetchall()


def contents(conninfo: str) -> dict[str, list[str]]:
    """Every row of every table as text, in a fixed order."""
    return {
        table: [row[0] for row in select(conninfo, f"SELECT t::text FROM {table} t ORDER BY 1")] for table in TABLES
    }
