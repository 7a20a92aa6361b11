"""Roles, logins and passwords of a stack that is up: what each may do, and how passwords change."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from observatory.database.connection import connect, with_database
from observatory.database.errors import UnreachableError
from observatory.documents.logins import PAIRED_ROLES
from observatory.waiting import wait_until
from tests.service.harness import item
from tests.support.checkout import Checkout
from tests.support.waiting import PATIENCE_S, until

EMBEDDED = ("--engine", "embedded")
REQUESTS_PER_SECOND = 50
WRITE_EVERY = 5


def urls(stack: Checkout) -> dict[str, str]:
    """The logins' URLs: administrators' to PostgreSQL itself, the others' to pgBouncer."""
    known: dict[str, str] = json.loads(stack.output("database_urls"))
    return known


def on_the_socket(stack: Checkout, login: str) -> str:
    """A login's connection string past pgBouncer, as pgBouncer itself connects; only the stack's user can."""
    return make_conninfo(urls(stack)[login], host=str(stack.home / "run/postgresql"), port=stack.ports()["postgres"])


@contextmanager
def session(stack: Checkout, login: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(on_the_socket(stack, login) if "admin" not in login else urls(stack)[login], purpose="test") as opened:
        yield opened


@contextmanager
def admin(stack: Checkout) -> Iterator[psycopg.Connection[Any]]:
    with connect(with_database(stack.output("admin_database_url"), "observatory"), purpose="test") as connection:
        yield connection


def log_since(stack: Checkout, position: int) -> str:
    return (stack.home / "log/patroni.log").read_text(errors="replace")[position:]


@pytest.mark.parametrize("login", ["app_a", "app_b", "readonly_a", "readonly_b", "admin_a", "admin_b"])
def test_no_login_with_a_password_may_change_objects_roles_or_the_audit(stack: Checkout, login: str) -> None:
    with session(stack, login) as connection:
        for statement in (
            "CREATE TABLE t ()",
            "CREATE SCHEMA s",
            "DROP TABLE llm_logs",
            "ALTER TABLE llm_logs ADD x int",
            "CREATE INDEX ON llm_logs (message)",
            "CREATE ROLE r",
            "ALTER ROLE app_a CONNECTION LIMIT 1000",
            "CREATE EXTENSION dblink",
            "CREATE TABLE audit.t ()",
            "DROP SCHEMA audit",
            "INSERT INTO observatory.schema_migrations (version) VALUES (99)",
            "SET ROLE migrator",
            "SET ROLE auditor",
            "SET log_statement = 'none'",
            "UPDATE cron.job SET active = false",
        ):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("login", "allowed", "refused"),
    [
        (
            "app_a",
            ["SELECT FROM api_keys", "SELECT FROM observatory.schema_migrations", "CREATE TEMPORARY TABLE t ()"],
            ["SELECT FROM cron.job", "SELECT FROM pg_authid", "DELETE FROM llm_logs", "UPDATE api_keys SET name = ''"],
        ),
        (
            "readonly_a",
            ["SELECT FROM llm_traces", "SELECT FROM llm_metrics_1min", "SELECT FROM observatory.schema_migrations"],
            ["SELECT FROM api_keys", "INSERT INTO users (id) VALUES ('u')", "CREATE TEMPORARY TABLE t ()"],
        ),
        (
            "admin_a",
            ["INSERT INTO users (id) VALUES ('u')", "DELETE FROM users WHERE id = 'u'", "VACUUM llm_logs"],
            ["SELECT FROM pg_authid", "SELECT FROM audit.x", "UPDATE observatory.schema_migrations SET name = ''"],
        ),
    ],
)
def test_each_role_may_do_its_work_and_no_more(
    stack: Checkout, login: str, allowed: list[str], refused: list[str]
) -> None:
    with session(stack, login) as connection:
        for statement in allowed:
            connection.execute(statement.encode())
        for statement in refused:
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("login", "limits"),
    [
        ("app_b", ("30s", "10s", "30s", 25)),
        ("readonly_a", ("1min", "5s", "1min", 10)),
        ("admin_a", ("15min", "10s", "5min", 5)),
    ],
)
def test_each_login_has_its_limits(stack: Checkout, login: str, limits: tuple[Any, ...]) -> None:
    settings = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with session(stack, login) as connection:
        found = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in settings]
        found.append(connection.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user").fetchone())
    assert tuple(row[0] for row in found if row) == limits


def test_limits_are_enforced(stack: Checkout) -> None:
    """One session too many is refused, and a wait for a lock ends."""
    with admin(stack) as blocker, session(stack, "readonly_a") as waiting:
        with blocker.transaction():
            blocker.execute("LOCK TABLE projects IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(errors.LockNotAvailable):
                waiting.execute("SELECT FROM projects")
        mine = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'readonly_a'"
        until(lambda: blocker.execute(mine).fetchone() == (1,), "the end of the sessions of the tests before")
        with contextlib.ExitStack() as sessions:
            for _ in range(9):
                sessions.enter_context(session(stack, "readonly_a"))
            with pytest.raises(UnreachableError, match="too many connections for role"):
                sessions.enter_context(session(stack, "readonly_a"))


def test_the_log_has_changes_of_objects_and_roles(stack: Checkout) -> None:
    position = len((stack.home / "log/patroni.log").read_text(errors="replace"))
    with admin(stack) as connection:
        connection.execute("CREATE TABLE logged (x int); DROP TABLE logged")
        connection.execute("CREATE ROLE logged NOLOGIN; GRANT pg_monitor TO logged; DROP ROLE logged")
    logged = ("CREATE TABLE logged", "DROP TABLE logged", "CREATE ROLE logged", "GRANT pg_monitor TO logged")
    named = "observatory:test"  # the application
    until(lambda: not [each for each in (*logged, named) if each not in log_since(stack, position)], "the statements")


MARK = "zq-marked-text"
CHANGE_OF_AN_OBJECT = f"CREATE TABLE stolen AS SELECT '{MARK}' AS text"  # logged where it is allowed
PROVOKED = (  # each fails, and PostgreSQL's message or the statement has the mark
    f"SELECT '{MARK}'::int",
    f'SELECT * FROM "{MARK}"',
    f"INSERT INTO llm_traces (ts, model) VALUES ('{MARK}', 'm')",
    f"INSERT INTO users (id, name) VALUES (NULL, '{MARK}')",
    f"SELECT 1 / 0, '{MARK}'",
    f"UPDATE llm_traces SET input_text = '{MARK}",
    f"COPY llm_traces (ts, input_text) FROM PROGRAM 'echo {MARK}, '",
    f"DO $$ BEGIN RAISE EXCEPTION '{MARK}'; END $$",
    f"EXPLAIN SELECT * FROM llm_traces WHERE input_text = '{MARK}' AND missing",
)


def provoke(stack: Checkout) -> None:
    """Send the mark as prompts, in statements that fail, wait and are cancelled, and as an unknown API key."""
    for login in ("app_a", "readonly_a", "admin_a", None):
        with session(stack, login) if login else admin(stack) as connection:
            for statement in (*PROVOKED, *([CHANGE_OF_AN_OBJECT] if login else [])):
                with pytest.raises(psycopg.Error):
                    connection.execute(statement.encode())
            connection.execute("SET statement_timeout = '10ms'")
            with pytest.raises(errors.QueryCanceled):
                connection.execute(f"SELECT pg_sleep(9), '{MARK}'".encode())
    headers = {"Authorization": f"Bearer {stack.output('api_key')}"}
    span = item(input_text=MARK, output_text=MARK)
    with httpx.Client(base_url=stack.output("service_url"), headers=headers, verify=stack.trusted()) as client:
        for _ in range(2):  # the second one goes by way of a temporary table
            assert client.post("/v1/traces", json={"items": [span]}).status_code == 201
        assert client.post("/v1/traces", json={"items": [{**span, "ts": MARK}]}).status_code >= 400
        assert client.get(f"/v1/traces?limit={MARK}").status_code >= 400
        assert client.get("/v1/traces", headers={"Authorization": f"Bearer {MARK}"}).status_code == 401


def places_with(stack: Checkout, secret: str) -> set[str]:
    """Return the logs and documents of the stack, and the statistics of statements, that contain a text."""
    state = stack.root / ".observatory"
    documents = [*(state / "rollout").rglob("*"), *(state / "access").rglob("*"), *(stack.home / "log").rglob("*")]
    found = {file.name for file in documents if file.is_file() and secret.encode() in file.read_bytes()}
    with admin(stack) as connection:
        query = "SELECT count(*) FROM pg_stat_statements WHERE strpos(query, %s) > 0"
        if connection.execute(query, [secret]).fetchone() != (0,):
            found.add("pg_stat_statements")
    return found


def test_neither_prompts_nor_keys_reach_a_log(stack: Checkout) -> None:
    provoke(stack)
    assert places_with(stack, MARK) == set()
    assert places_with(stack, stack.output("api_key")) == set()


def recorded(stack: Checkout, query: str) -> list[tuple[Any, ...]]:
    with admin(stack) as connection:
        return connection.execute(f"SELECT {query}".encode()).fetchall()


def test_a_key_works_from_its_creation_until_it_is_revoked_and_both_are_recorded(stack: Checkout) -> None:
    made = stack.json(
        "key", "create", "--name", "a pipeline", "--scope", "read", "--rate-limit", "900", "--expires", "30"
    )
    [listed] = [each for each in stack.json("key", "list") if each["id"] == made["id"]]
    assert (listed["scopes"], listed["rate_limit_rpm"], listed["state"]) == (["read"], 900, "active")
    headers = {"Authorization": f"Bearer {made['key']}"}
    with httpx.Client(base_url=stack.output("service_url"), headers=headers, verify=stack.trusted()) as client:
        assert client.get("/v1/traces?limit=1").status_code == 200
        assert client.post("/v1/traces", json={"items": [item()]}).status_code == 403
        with session(stack, "admin_a") as connection:
            connection.execute("UPDATE api_keys SET rate_limit_rpm = 901 WHERE id = %s", [made["id"]])
        assert "no such key" in stack.run("key", "revoke", "obs_unknown", expect=2).stderr
        assert stack.json("key", "revoke", made["prefix"])["state"] == "revoked"
        assert wait_until(lambda: client.get("/v1/traces?limit=1").status_code == 401, PATIENCE_S, interval_s=0.2)
    ours = (
        f"FROM audit.entries WHERE details ->> 'key' = '{made['id']}' OR details ->> 'name' = 'a pipeline' ORDER BY at"
    )
    assert [row[0] for row in recorded(stack, f"event {ours}")] == [
        "key-creation-started",
        "key-created",
        "key-revocation-started",
        "key-revoked",
    ]
    changes = "actor, details ->> 'operation' FROM audit.entries WHERE details ->> 'table' = 'public.api_keys'"
    assert ("admin_a", "UPDATE") in recorded(stack, changes)
    assert places_with(stack, made["key"]) == set()


def test_no_login_reaches_another_database_or_postgresql_past_the_pooler(stack: Checkout) -> None:
    direct = stack.ports()["postgres"]
    for name, url in urls(stack).items():
        for database in ("postgres", "template1"):
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry|no such database"):
                psycopg.connect(url, dbname=database)
        if "admin" not in name:
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                psycopg.connect(url, port=direct)
            with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
                psycopg.connect(url, port=direct, sslmode="disable")
    with (
        pytest.raises(UnreachableError, match=r"no pg_hba\.conf entry"),
        connect(make_conninfo(on_the_socket(stack, "app_a"), dbname="postgres"), purpose="test"),
    ):
        pass


@contextmanager
def steady_load(stack: Checkout) -> Iterator[Counter[int]]:
    """Send requests at a steady rate, a fifth of them writes; yields the answers' status codes, 0 for no answer."""
    answers: Counter[int] = Counter()
    over = threading.Event()
    headers = {"Authorization": f"Bearer {stack.output('api_key')}"}
    url, trusted = stack.output("service_url"), stack.trusted()

    def send() -> None:
        with httpx.Client(base_url=url, headers=headers, verify=trusted) as client:
            number, due = 0, time.monotonic()
            while not over.is_set():
                number, due = number + 1, due + 4 / REQUESTS_PER_SECOND
                try:
                    if number % WRITE_EVERY:
                        answers[client.get("/v1/traces?limit=1").status_code] += 1
                    else:
                        answers[client.post("/v1/traces", json={"items": [item()]}).status_code] += 1
                except httpx.HTTPError:
                    answers[0] += 1
                over.wait(max(0.0, due - time.monotonic()))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


def document(stack: Checkout) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stack.root / ".observatory/access/local.json").read_text())
    return found


def test_a_rotation_fails_no_request_even_after_a_kill(stack: Checkout) -> None:
    """A rotation that is killed in the middle, the one that ends it, and a password changed by hand."""
    before, active = urls(stack), document(stack)["app"]["active"]
    taking_over = {"a": "b", "b": "a"}[active]
    with steady_load(stack) as answers:
        killed = stack.start("rotate-passwords", "--role", "app", *EMBEDDED)
        assert killed.stderr
        for line in killed.stderr:
            if f"update Role app_{taking_over}" in line:
                os.killpg(killed.pid, signal.SIGKILL)
                break
        killed.communicate()
        assert document(stack)["app"]["retiring"]
        assert recorded(stack, "FROM audit.entries WHERE event = 'password-rotation-started'")
        done = stack.json("rotate-passwords", *EMBEDDED)
    assert done["roles"] == [{"role": role, "login": f"{role}_{taking_over}", "retired": True} for role in PAIRED_ROLES]
    assert set(answers) <= {200, 201}, answers
    assert answers[201] > 20
    assert set(stack.json("up", *EMBEDDED)["summary"]) == {"same"}
    after = urls(stack)
    assert all(before[login] != after[login] for login in before)
    for url in (*before.values(), *after.values()):
        assert places_with(stack, str(psycopg.conninfo.conninfo_to_dict(url)["password"])) == set()
    assert places_with(stack, "SCRAM-SHA-256$") == set()
    for login, url in before.items():
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(url)
        psycopg.connect(after[login]).close()
    assert [each["unfinished"] for each in stack.well_status()["passwords"]] == [False] * 3

    login = f"app_{taking_over}"
    with admin(stack) as connection:
        connection.execute(f"ALTER ROLE {login} PASSWORD 'changed behind the back of the stack'".encode())
        connection.execute("ALTER ROLE provisioner PASSWORD 'changed behind the back of the stack'")
    output = stack.run("up", *EMBEDDED)
    assert f"the server refuses the password of {login}" in output.stderr
    psycopg.connect(urls(stack)[login]).close()
    with psycopg.connect(stack.output("database_url")) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (login,)
    assert set(stack.json("up", *EMBEDDED)["summary"]) == {"same"}


def test_an_unknown_role_is_refused_and_the_roles_are_listed(stack: Checkout) -> None:
    assert "app, readonly, admin" in stack.run("rotate-passwords", "--role", "root", expect=2).stderr


def test_the_status_shows_old_passwords(stack: Checkout) -> None:
    file = stack.root / ".observatory/access/local.json"
    current = file.read_text()
    changed = json.loads(current)
    changed["app"][changed["app"]["active"]]["since"] = "2020-01-01T00:00:00Z"
    file.write_text(json.dumps(changed))
    try:
        found = {each["role"]: each["overdue"] for each in stack.well_status()["passwords"]}
        assert found == {"app": True, "readonly": False, "admin": False}
        assert "too old: run observatory rotate-passwords" in stack.well_table()
    finally:
        file.write_text(current)
