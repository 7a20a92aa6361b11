"""Writes through pgBouncer with transaction pooling, where clients share sessions."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx

from tests.service.conftest import StartService
from tests.service.harness import StorageDatabase, item, post, storage_database
from tests.support.ports import free_port
from tests.support.postgres import PostgresServer
from tests.support.sandboxes import sandboxed

WRITERS = 6
BATCHES = 10
NEW = 10


@contextmanager
def pgbouncer(database: StorageDatabase, directory: Path) -> Iterator[str]:
    """Return the URL of the database through a pooler with fewer connections than writers."""
    server, port = database.server, free_port()
    password = database.password_file.read_text(encoding="utf-8").strip()
    (directory / "users").write_text(f'"{database.role}" "{password}"\n', encoding="utf-8")
    (directory / "pgbouncer.ini").write_text(
        f"[databases]\n{database.name} = host={server.host} port={server.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = scram-sha-256\n"
        "auth_file = /srv/users\npool_mode = transaction\ndefault_pool_size = 3\nmax_prepared_statements = 0\n",
        encoding="utf-8",
    )
    command = sandboxed(server.rootfs, directory, ["/usr/sbin/pgbouncer", "-q", "/srv/pgbouncer.ini"])
    with subprocess.Popen(command) as process:
        try:
            yield f"postgresql://{database.role}@127.0.0.1:{port}/{database.name}"
        finally:
            process.kill()


def test_concurrent_writes_of_the_same_items_store_each_once(
    postgres: PostgresServer, start: StartService, tmp_path: Path
) -> None:
    shared = [item() for _ in range(BATCHES)]
    statuses: list[int] = []

    def write(client: httpx.Client) -> None:
        statuses.extend(post(client, *(item() for _ in range(NEW)), repeated).status_code for repeated in shared)

    with storage_database(postgres, tmp_path) as database, pgbouncer(database, tmp_path) as url:
        service = start(database, DATABASE_URL=url)
        threads = [Thread(target=write, args=(service.client(),)) for _ in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (rows,) = database.execute("SELECT count(*) FROM llm_traces")
        service.close()
    assert statuses == [201] * (WRITERS * BATCHES)
    assert rows == (WRITERS * BATCHES * NEW + len(shared),)
