"""What administrators change is recorded: who, which table, how many rows, and never the values."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors

from observatory.database import grant_access
from observatory.database.audit_table import read_entries
from observatory.database.roles.audit_schema import ROWS_CHANGED
from tests.database.roles.conftest import Names, as_login, bootstrap, give_access, make_login, migrate
from tests.support.postgres import PostgresServer

TRACE = """
    INSERT INTO llm_traces (
        ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code, input_text
    )
    VALUES (clock_timestamp(), gen_random_uuid(), gen_random_uuid(), 's', 'p', 'm', 'text', 1, 'OK', %s)
"""
PROMPT = "a private prompt"


@pytest.fixture
def administrator(postgres: PostgresServer, names: Names) -> str:
    """The database with a login that is an administrator; return its name."""
    bootstrap(postgres, names)
    migrate(postgres, names)
    make_login(postgres, names)
    grant(postgres, names)
    return names.login


def grant(postgres: PostgresServer, names: Names) -> None:
    owner = postgres.conninfo(user=names.owner, dbname=names.database)
    grant_access(owner, roles={names.login: "administrator"})


def recorded(postgres: PostgresServer, names: Names) -> list[dict[str, Any]]:
    entries = read_entries(postgres.conninfo(dbname=names.database))
    assert {entry.event for entry in entries} <= {ROWS_CHANGED}
    return [{"actor": entry.actor, **entry.details} for entry in entries]


def test_changes_are_recorded_without_their_values(postgres: PostgresServer, names: Names, administrator: str) -> None:
    before = postgres.log_file.stat().st_size
    with as_login(postgres, names) as connection:
        connection.execute("INSERT INTO users (id, name) VALUES ('u', %s)", [PROMPT])
        connection.execute("UPDATE api_keys SET name = %s", [PROMPT])
        with connection.transaction():
            for _ in range(3):
                connection.execute(TRACE, [PROMPT])
            connection.execute("DELETE FROM llm_traces")
        with connection.cursor().copy("COPY llm_logs (ts, log_level, message) FROM STDIN") as copy:
            copy.write_row(["now", "INFO", PROMPT])
        with pytest.raises(errors.DivisionByZero):
            connection.execute("DELETE FROM llm_logs; SELECT 1 / 0")

    found = recorded(postgres, names)

    assert {entry["actor"] for entry in found} == {administrator}
    assert [(entry["table"], entry["operation"], entry["rows_in_transaction"]) for entry in found] == [
        ("public.users", "INSERT", 1),
        ("public.api_keys", "UPDATE", 0),
        ("public.llm_traces", "INSERT", 1),
        ("public.llm_traces", "INSERT", 2),
        ("public.llm_traces", "INSERT", 3),
        ("public.llm_traces", "DELETE", 3),
        ("public.llm_logs", "INSERT", 1),
    ]
    assert PROMPT not in str(found)
    with postgres.log_file.open(errors="replace") as log:
        log.seek(before)
        lines = [line for line in log if "changed rows" in line]
    assert len(lines) == len(found) + 1, "the log has the one that was rolled back, too"
    assert "DELETE on public.llm_logs, 1 rows" in lines[-1]


@pytest.mark.usefixtures("administrator")
def test_an_administrator_cannot_switch_the_record_off(postgres: PostgresServer, names: Names) -> None:
    with as_login(postgres, names) as connection:
        connection.execute(TRACE, [PROMPT])
        for statement in (
            "ALTER TABLE llm_traces DISABLE TRIGGER ALL",
            "DROP TRIGGER administrators_are_recorded ON llm_traces",
            "SET session_replication_role = replica",
            "TRUNCATE llm_traces",
            "DELETE FROM audit.entries",
            "SELECT audit.record_change()",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    assert [entry["operation"] for entry in recorded(postgres, names)] == ["INSERT"]


def test_the_service_is_not_recorded_and_does_not_depend_on_the_role(postgres: PostgresServer, names: Names) -> None:
    bootstrap(postgres, names)
    migrate(postgres, names)
    make_login(postgres, names)
    with postgres.superuser() as admin:
        admin.execute(f"CREATE ROLE {names.login}_admin".encode())
    try:
        owner = postgres.conninfo(user=names.owner, dbname=names.database)
        grant_access(owner, roles={f"{names.login}_admin": "administrator"})
        give_access(postgres, names)
        with postgres.superuser(names.database) as admin:
            admin.execute(f"DROP OWNED BY {names.login}_admin; DROP ROLE {names.login}_admin".encode())
        with as_login(postgres, names) as connection:
            connection.execute(TRACE, [PROMPT])
    finally:
        with postgres.superuser(names.database) as admin:
            admin.execute(f"DROP ROLE IF EXISTS {names.login}_admin".encode())
    assert recorded(postgres, names) == []
