"""Connection strings over PostgreSQL's socket, below a home of any name."""

from __future__ import annotations

from psycopg.conninfo import conninfo_to_dict

from components.local.database import _conninfo
from observatory.settings import LocalSettings


def test_a_home_with_quotes_is_one_host() -> None:
    host = '/home/o\'neil/a \\ "b"/run'
    found = conninfo_to_dict(_conninfo(host, LocalSettings(), "postgres", "observatory"))
    assert (found["host"], found["user"], found["dbname"]) == (host, "postgres", "observatory")
