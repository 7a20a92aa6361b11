"""A new database for each test, and directories of migrations."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from observatory.database import Deployment, audit_table, deploy
from tests.support.postgres import PostgresServer

WriteMigrations = Callable[..., Path]
Deploy = Callable[..., Deployment]

SHIPPED = Path(__file__).parents[2] / "migrations"


@pytest.fixture(autouse=True)
def _patient_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than 3 s for a connection, and than 2 s for a transaction that holds a lock."""
    monkeypatch.setattr(audit_table, "CONNECT_TIMEOUT_S", 60)
    monkeypatch.setattr(audit_table, "TIMEOUTS", {"lock_timeout": "60s", "statement_timeout": "60s"})


@pytest.fixture
def conninfo(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database over the socket, as superuser; of the community edition where the test is marked so."""
    community = request.node.get_closest_marker("community")
    server: PostgresServer = request.getfixturevalue("community_postgres" if community else "postgres")
    with server.fresh_database() as name:
        yield server.conninfo(dbname=name)


@pytest.fixture
def write_migrations(tmp_path: Path) -> WriteMigrations:
    """Write `name=sql` pairs as files; `_` at the front of a name makes it a keyword, `001_a` is `_001_a`."""

    def write(**files: str) -> Path:
        directory = tmp_path / "migrations"
        directory.mkdir(exist_ok=True)
        for name, sql in files.items():
            (directory / f"{name.removeprefix('_')}.sql").write_text(sql, encoding="utf-8")
        return directory

    return write


@pytest.fixture
def run_deploy(conninfo: str) -> Deploy:
    """`deploy` into the fresh database, without waiting and without retries."""
    return partial(deploy, conninfo, actor="tester", deployment_id="test", retry=0, lock_wait_s=0)
