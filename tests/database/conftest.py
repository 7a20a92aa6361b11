"""A database of its own for each test, and directories of migrations."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from observatory.database import Deployment, deploy, status
from tests.support.postgres import PostgresServer

WriteMigrations = Callable[..., Path]
Deploy = Callable[..., Deployment]

SHIPPED = Path(__file__).parents[2] / "migrations"


@pytest.fixture(autouse=True)
def needed_edition(request: pytest.FixtureRequest) -> None:
    """Skip, and say so, what the server's edition of TimescaleDB cannot do."""
    if request.node.get_closest_marker("community") and status(request.getfixturevalue("conninfo")).edition == "apache":
        pytest.skip("needs TimescaleDB's community edition")


@pytest.fixture
def conninfo(postgres: PostgresServer, fresh_database: str) -> str:
    """A fresh database over the socket, as superuser."""
    return postgres.conninfo(dbname=fresh_database)


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
