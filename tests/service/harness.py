"""The service as a process, its database, and items to send."""

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import psycopg
from psycopg import sql

from observatory.database import deploy
from service.storage_service.items import Batch, Item, Window
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE_S, until

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "storage_service")
# Limits that are no settings: a busy machine takes longer for a query of the monitor, and for the last one of all.
PATIENT = """
import sys
from storage_service import database, key_usage
database.CONNECT_TIMEOUT_S = database.MONITOR_TIMEOUT_S = key_usage.CLOSE_TIMEOUT_S = 60
from storage_service.__main__ import main
sys.exit(main())
"""
PATIENT_COMMAND = (sys.executable, "-c", PATIENT)
FAULTY = f"""
import sys
sys.path.append({str(REPOSITORY)!r})
from tests.support.faulty.launch import install
install(sys.argv[1])
del sys.argv[1]
from storage_service.__main__ import main
sys.exit(main())
"""
GRANTS = (
    "USAGE ON SCHEMA observatory",
    "SELECT ON observatory.schema_migrations, api_keys",
    "SELECT, INSERT ON llm_traces, llm_metrics, llm_logs",
    "UPDATE ON llm_traces",
)


def faulty(fault: str) -> tuple[str, ...]:
    """Return the command of a service with a fault of `tests.support.faulty`."""
    return (sys.executable, "-c", FAULTY, fault)


def item(**fields: Any) -> dict[str, Any]:
    """Return a valid span with unique identifiers."""
    return {
        "ts": datetime.now(UTC).isoformat(),
        "trace_id": secrets.token_hex(16),
        "span_id": secrets.token_hex(8),
        "span_name": "chat",
        "provider": "openai",
        "model": "gpt-4o",
        "input_type": "text",
        "duration_ms": 850,
        "status_code": "OK",
        **fields,
    }


def measurement(**fields: Any) -> dict[str, Any]:
    """Return a valid metric."""
    return {
        "ts": datetime.now(UTC).isoformat(),
        "metric_name": "queue_depth",
        "metric_type": "gauge",
        "provider": "openai",
        "model": "gpt-4o",
        "value": 1.5,
        **fields,
    }


def log_entry(**fields: Any) -> dict[str, Any]:
    """Return a valid log line."""
    return {"ts": datetime.now(UTC).isoformat(), "log_level": "info", "message": "cache warmed", **fields}


def parse_batch(body: bytes, model: type[Item], window: Window) -> list[Item]:
    """Parse a body in one go."""
    batch = Batch(body, model, window)
    for _ in batch.steps():
        pass
    return batch.accepted()


@dataclass(frozen=True, kw_only=True)
class StorageDatabase:
    """A migrated database with the service's role and API keys."""

    server: PostgresServer
    name: str
    role: str
    password_file: Path
    key: str = ""

    @property
    def url(self) -> str:
        return f"postgresql://{self.role}@{self.server.host}:{self.server.port}/{self.name}"

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run SQL as superuser."""
        with closing(self.server.superuser(self.name)) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def change_password(self) -> None:
        password = secrets.token_urlsafe(16)
        self.execute(f"ALTER ROLE {self.role} PASSWORD '{password}'")
        self.password_file.write_text(password + "\n", encoding="utf-8")

    def disconnect(self) -> None:
        """End every session of the service's role."""
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", self.role)

    def count(self, trace_id: str) -> int:
        return int(self.execute("SELECT count(*) FROM llm_traces WHERE trace_id = %s", trace_id)[0][0])

    def add_key(
        self,
        *,
        scopes: str | None = "{read,write}",
        active: bool = True,
        expires: str | None = None,
        rate_limit_rpm: int = 1_000_000,
    ) -> str:
        """Add an API key; `expires` is an interval from now."""
        key = secrets.token_urlsafe(32)
        self.execute(
            "INSERT INTO api_keys (key_hash, key_prefix, name, scopes, is_active, expires_at, rate_limit_rpm)"
            " VALUES (%s, %s, 'test', %s, %s, now() + %s::interval, %s)",
            *(hashlib.sha256(key.encode()).hexdigest(), key[:8], scopes, active, expires, rate_limit_rpm),
        )
        return key

    @contextmanager
    def unavailable(self) -> Iterator[None]:
        """Terminate every session of the service's role and reject new connections."""
        with closing(self.server.superuser()) as connection:
            allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
            connection.execute(allow.format(sql.Identifier(self.name), sql.SQL("false")))
            try:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [self.role]
                )
                yield
            finally:
                connection.execute(allow.format(sql.Identifier(self.name), sql.SQL("true")))

    @contextmanager
    def locked_traces(self, mode: str = "SHARE") -> Iterator[None]:
        """Block writes to the traces by a lock; ACCESS EXCLUSIVE also blocks reads."""
        with closing(psycopg.connect(self.server.conninfo(dbname=self.name))) as connection:
            connection.execute(f"LOCK TABLE llm_traces IN {mode} MODE".encode())
            yield

    def blocked(self) -> int:
        """Return how many of the service's transactions wait for a lock; each holds a connection of its pool."""
        with closing(self.server.superuser()) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND wait_event_type = 'Lock'", [self.role]
            ).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def storage_database(server: PostgresServer, directory: Path, *, schema: int = 3) -> Iterator[StorageDatabase]:
    """Create a database with the real migrations, by default up to the service's lowest schema version."""
    role = f"storage_{secrets.token_hex(4)}"
    password_file = directory / role
    with server.fresh_database() as name, _role(server, role):
        deploy(
            server.conninfo(dbname=name),
            migrations=REPOSITORY / "migrations",
            target=schema,
            actor="tests",
            deployment_id="tests",
        )
        database = StorageDatabase(server=server, name=name, role=role, password_file=password_file)
        database.change_password()
        for grant in GRANTS:
            database.execute(f"GRANT {grant} TO {role}")
        yield replace(database, key=database.add_key())
        database.execute(f"DROP OWNED BY {role}")


@contextmanager
def _role(server: PostgresServer, name: str) -> Iterator[None]:
    with closing(server.superuser()) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN")
        yield
        connection.execute(f"DROP ROLE {name}")


@dataclass(kw_only=True)
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path
    key: str
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, *, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=PATIENCE_S)
        self.clients.append(client)
        return client

    @property
    def pid(self) -> int:
        """Process id of the service itself, which may run inside a sandbox."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return below[-1].pid if below else self.process.pid

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text(encoding="utf-8").splitlines()]

    def wait_until_ready(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}") as client:
            until(
                lambda: self._status(client, "/health/ready") == 200,
                f"the service to be ready; log: {self.log_file.read_text()}",
            )

    def wait_until_live(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}") as client:
            until(
                lambda: self._status(client, "/health/live") == 200,
                f"the service to be live; log: {self.log_file.read_text()}",
            )

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def metric(self, name: str, *, absent: float | None = None) -> float:
        """Return the value of a metric, named with its labels as in `/metrics`; `absent` while it has none."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text
        match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        if match is None and absent is not None:
            return absent
        assert match, text
        return float(match[1])

    def close(self) -> None:
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        self.process.wait()

    def _status(self, client: httpx.Client, path: str) -> int:
        if self.process.poll() is not None:
            raise RuntimeError(f"the service ended with {self.process.returncode}: {self.log_file.read_text()}")
        try:
            return client.get(path).status_code
        except httpx.TransportError:
            return 0


def environment(database: StorageDatabase, port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the service's environment; `settings` are named without the prefix.

    Its limits of time are for a busy machine, where the defaults would fail requests that only wait for a test's lock,
    and those of which a client sends or reads the rest late.
    """
    variables = {
        "STORAGE_LISTEN": f"127.0.0.1:{port}",
        "STORAGE_FLEET": "blue",
        "STORAGE_DATABASE_URL": database.url,
        "STORAGE_DATABASE_PASSWORD_FILE": str(database.password_file),
        "STORAGE_DATABASE_TIMEOUT_SECONDS": "60",
        "STORAGE_POOL_TIMEOUT_SECONDS": "60",
        "STORAGE_UPLOAD_SECONDS": "60",
        "STORAGE_RESPONSE_SECONDS": "60",
        "STORAGE_LAME_DUCK_SECONDS": "0",
        **{f"STORAGE_{name}": value for name, value in settings.items()},
    }
    return {"PATH": os.environ["PATH"], **variables}


def run_to_end(variables: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a service that exits by itself."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=REPOSITORY / "service",
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@contextmanager
def running_service(
    database: StorageDatabase, directory: Path, settings: Mapping[str, str], *, command: Sequence[str] = PATIENT_COMMAND
) -> Iterator[Service]:
    """Start a service without waiting for readiness, and stop it at the end."""
    port = free_port()
    log_file = directory / f"service-{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY / "service",
            env=environment(database, port, settings),
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    service = Service(process=process, port=port, log_file=log_file, key=database.key)
    try:
        yield service
    finally:
        service.close()


def post(client: httpx.Client, *items: Any, path: str = "/v1/traces") -> httpx.Response:
    return client.post(path, json={"items": items})


class Background:
    """A write in another thread."""

    def __init__(self, client: httpx.Client, *items: Any) -> None:
        self._answer: httpx.Response | None = None
        self._thread = Thread(target=self._run, args=(client, items))
        self._thread.start()

    def _run(self, client: httpx.Client, items: tuple[Any, ...]) -> None:
        self._answer = post(client, *items)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> httpx.Response:
        self._thread.join()
        assert self._answer is not None
        return self._answer
