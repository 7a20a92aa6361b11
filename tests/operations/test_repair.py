"""A repair of the ledger is recorded with reason and rows, and its start before anything changes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from observatory import operations
from observatory.database import RepairRefusedError, StatementFailedError, deploy
from observatory.operations import UrlDatabase, url_database
from tests.support.postgres import PostgresServer


@dataclass(frozen=True, kw_only=True)
class Recorded(UrlDatabase):
    """A database whose events are kept, each with the rows of the ledger at its time."""

    events: list[tuple[str, dict[str, Any], int]] = field(default_factory=list)

    def locked(self, _command: str) -> Any:
        return nullcontext()

    @contextmanager
    def audited(self, _what: str, **details: Any) -> Iterator[None]:
        self.record_event(f"{_what}-started", **details)
        yield

    def record_event(self, event: str, **details: Any) -> None:
        with psycopg.connect(self.url) as connection:
            [rows] = connection.execute("SELECT count(*) FROM observatory.schema_migrations").fetchone() or (0,)
        self.events.append((event, details, rows))


@pytest.fixture
def place(postgres: PostgresServer, tmp_path: Path) -> Iterator[Recorded]:
    """A database whose only migration was interrupted."""
    (tmp_path / "001_a.sql").write_text("-- transaction: false\nSELECT 1;\nSELECT missing;")
    with postgres.fresh_database() as name:
        made = url_database(postgres.conninfo(dbname=name))
        with pytest.raises(StatementFailedError):
            deploy(made.url, migrations=tmp_path, actor="tester", deployment_id="test")
        yield Recorded(url=made.url, migrations=tmp_path, rootfs=made.rootfs)


def test_a_repair_is_recorded_with_its_reason_and_rows(place: Recorded) -> None:
    planned = operations.plan_repair(place, "forget", "001_a.sql")
    assert place.events == []

    done = operations.repair_ledger(place, "forget", "001_a.sql", reason="it never worked", planned=planned)

    given = {"action": "forget", "file": "001_a.sql", "reason": "it never worked"}
    assert place.events == [
        ("ledger-repair-started", given, 1),
        ("ledger-repaired", {**given, "before": done.before, "after": None}, 0),
    ]


def test_a_file_outside_the_directory_and_an_empty_reason_are_refused(place: Recorded) -> None:
    with pytest.raises(operations.DatabaseError, match="is not in"):
        operations.plan_repair(place, "forget", "/elsewhere/001_a.sql")
    with pytest.raises(RepairRefusedError, match="needs a reason"):
        operations.repair_ledger(place, "forget", "001_a.sql", reason=" ")
    assert [event for event, *_ in place.events] == ["ledger-repair-started"]
