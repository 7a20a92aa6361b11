"""Dumps of a database and their restore, on a real server with the shipped migrations."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from observatory.backups.dump import MANIFEST, create_dump
from observatory.backups.dump_manifest import DumpError, DumpRefusedError, Manifest
from observatory.backups.dump_restore import INCOMPLETE, read_manifest, restore_dump
from observatory.backups.dump_server import DumpServer
from observatory.database import deploy
from observatory.database.roles.bootstrap import ensure_database
from observatory.runtime import Sandbox
from observatory.security.age_files import EncryptedFileError, decrypting, encrypting, make_key
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.slow
MIGRATIONS = Path(__file__).parents[2] / "migrations"
KNOWN = range(1, 500)
KEY = make_key()
DATABASE, RESTORED = "dumped", "restored"
SPAN = """
    INSERT INTO llm_traces (ts, trace_id, span_id, span_name, provider, model, input_type, duration_ms, status_code)
    SELECT now() - n * interval '1 hour', 'trace' || n, 'span', 'call', 'openai', 'gpt', 'text', n, 'OK'
    FROM generate_series(1, 300) AS n
"""
TRACES = 300
GRANTS = """
    SELECT acl.grantee::regrole::text, privilege_type FROM pg_database, aclexplode(datacl) AS acl
    WHERE datname = current_database() ORDER BY 1, 2
"""
RIGHTS = """
    SELECT kind, object, acl.grantor::regrole::text, coalesce(nullif(acl.grantee, 0)::regrole::text, 'PUBLIC'),
        privilege_type, is_grantable
    FROM (
        SELECT 'schema', nspname::text, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
        UNION ALL SELECT 'relation', oid::regclass::text, relacl FROM pg_class
        UNION ALL SELECT 'function', oid::regprocedure::text, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
        UNION ALL SELECT 'column', attrelid::regclass || '.' || attname, attacl FROM pg_attribute
        UNION ALL SELECT 'default', concat(defaclrole, defaclobjtype, defaclnamespace::regnamespace), defaclacl
            FROM pg_default_acl
    ) AS found (kind, object, rights), aclexplode(rights) AS acl
    WHERE object !~ '^pg_(toast|temp)' ORDER BY 1, 2, 3, 4, 5
"""
READER = """
    SELECT rolvaliduntil, roleid::regrole::text, admin_option, inherit_option, set_option
    FROM pg_roles r JOIN pg_auth_members ON member = r.oid WHERE rolname = 'reader'
"""
LOGS = """
    INSERT INTO llm_logs (ts, log_level, message)
    SELECT now() - n * interval '2 hours', 'INFO', repeat('text ', 20) || n FROM generate_series(1, 200) AS n
"""


@dataclass(frozen=True)
class Dumped:
    server: DumpServer
    postgres: PostgresServer

    def sql(self, statement: str, dbname: str = DATABASE, user: str = "postgres") -> list[tuple[object, ...]]:
        with psycopg.connect(self.postgres.conninfo(user=user, dbname=dbname), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def dump(self) -> Callable[..., Manifest]:
        return partial(create_dump, self.server, DATABASE, key=KEY)

    @property
    def restore(self) -> Callable[..., Manifest]:
        return partial(restore_dump, into=self.server, database=RESTORED, key=KEY, known=KNOWN)

    def make_reader(self) -> None:
        self.sql("CREATE ROLE reader LOGIN PASSWORD 'old'; ALTER ROLE reader SET work_mem = '5MB'", "postgres")
        self.sql("ALTER ROLE reader VALID UNTIL '2090-01-01 00:00Z'", "postgres")
        self.sql("GRANT pg_monitor TO reader WITH ADMIN TRUE, INHERIT FALSE, SET FALSE", "postgres")
        self.sql("GRANT CONNECT ON DATABASE dumped TO reader; GRANT USAGE ON SCHEMA public TO reader")
        self.sql("GRANT SELECT ON llm_traces TO reader; REVOKE USAGE ON SCHEMA public FROM PUBLIC")

    def unpacked(self) -> list[Path]:
        return list((self.postgres.directory / "data/restore").glob("*"))

    def databases(self) -> set[object]:
        return {name for (name,) in self.sql("SELECT datname FROM pg_database", "postgres")}


@pytest.fixture(scope="module", params=["apache", pytest.param("community", marks=pytest.mark.community)])
def dumped(request: pytest.FixtureRequest) -> Iterator[Dumped]:
    """A database with the shipped schema and rows in many chunks; the community edition has compressed ones."""
    name = "community_postgres" if request.param == "community" else "postgres"
    postgres: PostgresServer = request.getfixturevalue(name)
    admin = postgres.conninfo()
    made = Dumped(
        DumpServer(
            sandbox=Sandbox(postgres.directory, postgres.rootfs), admin=admin, socket="/srv/run", port=postgres.port
        ),
        postgres,
    )
    try:
        ensure_database(admin, name=DATABASE, owner="migrator")
        owner = postgres.conninfo(user="migrator", dbname=DATABASE)
        deploy(owner, migrations=MIGRATIONS, actor="tester", deployment_id="test")
        made.sql("CREATE SCHEMA cron; CREATE TABLE cron.own AS SELECT 1 AS pg_cron; CREATE TABLE cron AS SELECT 2 AS n")
        made.make_reader()
        made.sql(SPAN, user="migrator")
        made.sql(LOGS, user="migrator")
        yield made
    finally:
        for each in (DATABASE, RESTORED):
            postgres.drop_database(each)
        with postgres.superuser() as connection:
            connection.execute("DROP ROLE IF EXISTS reader")


@pytest.fixture(scope="module")
def file(dumped: Dumped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of the database."""
    made = tmp_path_factory.mktemp("dump") / "database.dump"
    dumped.dump(made)
    return made


def repacked(file: Path, target: Path, *, drop: str = "", alter: str = "", **changes: object) -> Path:
    """Write a dump whose manifest has other values, or that lacks or alters files whose names end so."""
    with (
        decrypting(file, KEY) as content,
        tarfile.open(fileobj=content, mode="r|") as old,
        target.open("wb") as sink,
        encrypting(sink, KEY) as encrypted,
        tarfile.open(fileobj=encrypted, mode="w|") as new,
    ):
        for member in old:
            found = old.extractfile(member)
            assert found
            data = found.read()
            if member.name == MANIFEST:
                data = json.dumps(json.loads(data) | changes).encode()
            elif alter and member.name.endswith(alter):
                data = data[:-1] + bytes([data[-1] ^ 1])
            member.size = len(data)
            if not (drop and member.name.endswith(drop)):
                new.addfile(member, io.BytesIO(data))
    return target


def test_a_restored_dump_has_every_row_in_its_chunk(dumped: Dumped, file: Path) -> None:
    manifest = read_manifest(file, KEY)
    assert file.stat().st_mode & 0o777 == 0o600
    assert manifest.rows.hypertables['"public"."llm_traces"'] == TRACES
    assert len([name for name in manifest.rows.stored if "_hyper_" in name]) > 20
    dumped.restore(file)
    try:
        for query in (
            "SELECT md5(string_agg(t::text, '' ORDER BY t)) FROM llm_traces AS t",
            "SELECT md5(string_agg(t::text, '' ORDER BY t)) FROM llm_logs AS t",
            "SELECT md5(string_agg(c::text, '' ORDER BY c::text)) FROM show_chunks('llm_logs') AS c",
            "SELECT job_id, proc_name, hypertable_name FROM timescaledb_information.jobs ORDER BY 1",
            "SELECT version, sha256 FROM observatory.schema_migrations ORDER BY version",
            "SELECT pg_cron, n FROM cron.own, cron",  # no extension's
            "SELECT has_table_privilege('reader', 'llm_traces', 'SELECT'), current_setting('timezone')",
            GRANTS,
            RIGHTS,
        ):
            assert dumped.sql(query) == dumped.sql(query, RESTORED)
        dumped.sql(SPAN.replace("'trace'", "'later'"), RESTORED, user="migrator")  # new rows get chunks again
        assert dumped.sql("SELECT count(*) FROM llm_traces", RESTORED) == [(2 * TRACES,)]
        with pytest.raises(DumpRefusedError, match="has a database restored, and a restore replaces none"):
            dumped.restore(file)
    finally:
        dumped.postgres.drop_database(RESTORED)


def test_a_role_that_the_server_lacks_is_as_it_was(dumped: Dumped, file: Path) -> None:
    dumped.sql("DROP OWNED BY reader; DROP ROLE reader")
    try:
        dumped.restore(file)
        assert dumped.sql(READER) == [(datetime(2090, 1, 1, tzinfo=UTC), "pg_monitor", True, False, False)]
        password = dumped.postgres.tcp_conninfo(user="reader", password="old", dbname=RESTORED)
        with psycopg.connect(password) as connection:
            assert connection.execute("SELECT count(*), current_setting('work_mem') FROM llm_traces").fetchone() == (
                TRACES,
                "5MB",
            )
    finally:
        dumped.postgres.drop_database(RESTORED)
        dumped.sql("DROP ROLE IF EXISTS reader")
        dumped.make_reader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"migrations": [1, 2, 499, 612], "schema_version": 612}, "schema 612, and this checkout lacks its migrations"),
        ({"timescaledb": "2.99.1"}, "of TimescaleDB 2.99.1, and the server can only create 2"),
        ({"postgresql": 18}, "of PostgreSQL 18, and the server has 17"),
        ({"extensions": {"postgis": "3"}}, "the server lacks extensions of the dump: postgis"),
        ({"database_bytes": 2**60}, "MiB of free space, but the restore and the live database may need"),
        ({"format": 2}, "has a manifest that this version cannot read"),
        ({"files": {}}, "has a file that its manifest lacks: archive/"),
        ({"drop": "toc.dat"}, "lacks a file of its manifest: archive/toc.dat"),
        ({"alter": ".dat.zst"}, r"is damaged: archive/\d+.dat.zst differs from the manifest"),
        ({"drop": MANIFEST}, "is no dump of a database"),
    ],
)
def test_a_dump_that_does_not_fit_is_refused(
    dumped: Dumped, file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DumpRefusedError, match=message):
        dumped.restore(repacked(file, tmp_path / "forged.dump", **changes))
    assert RESTORED not in dumped.databases()
    assert not dumped.unpacked()


def test_a_cut_changed_or_foreign_file_is_refused(dumped: Dumped, file: Path, tmp_path: Path) -> None:
    whole, damaged = file.read_bytes(), tmp_path / "damaged.dump"
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for content in (b"", whole[:40], whole[:200], whole[:middle], whole[:-1], flipped, whole + b"x", b"PGDMP" * 100):
        damaged.write_bytes(content)
        with pytest.raises(EncryptedFileError):
            dumped.restore(damaged)
    with pytest.raises(EncryptedFileError, match="No matching keys"):
        dumped.restore(file, key=make_key())
    assert RESTORED not in dumped.databases()
    assert not dumped.unpacked()


def test_rows_that_differ_fail_the_restore_and_remove_its_database(dumped: Dumped, file: Path, tmp_path: Path) -> None:
    rows = read_manifest(file, KEY).rows
    chunk, number = next((name, number) for name, number in rows.stored.items() if "_hyper_" in name and number)
    more = number + 1  # no fixed number, which today's chunk may have at some hour
    wrong = {"stored": {**rows.stored, chunk: more}, "hypertables": {**rows.hypertables, '"public"."llm_logs"': 1}}
    with pytest.raises(DumpError, match=f"{chunk}: {more} rows stored in the dump, .* restored\n.*llm_logs.: 1 rows"):
        dumped.restore(repacked(file, tmp_path / "forged.dump", rows=wrong))
    assert RESTORED not in dumped.databases()


def test_a_database_that_a_killed_restore_left_is_replaced(dumped: Dumped, file: Path) -> None:
    dumped.sql(f"CREATE DATABASE {RESTORED}", "postgres")
    dumped.sql(f"COMMENT ON DATABASE {RESTORED} IS '{INCOMPLETE}'", "postgres")
    try:
        dumped.restore(file)
        assert dumped.sql("SELECT count(*) FROM llm_traces", RESTORED) == [(TRACES,)]
        assert dumped.sql("SELECT FROM pg_shdescription WHERE description LIKE 'observatory:%'") == []
    finally:
        dumped.postgres.drop_database(RESTORED)


def test_an_interrupted_restore_leaves_nothing(dumped: Dumped, file: Path) -> None:
    def interrupt(step: str) -> None:
        if step == "restore rows":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dumped.restore(file, report=interrupt)
    assert RESTORED not in dumped.databases()
    assert not dumped.unpacked()


def test_a_dump_overwrites_nothing_and_needs_space(
    dumped: Dumped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    existing = tmp_path / "existing"
    existing.write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for refused in (existing, tmp_path / "link", tmp_path / "no" / "directory"):
        with pytest.raises(DumpRefusedError):
            dumped.dump(refused)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=0))
    with pytest.raises(DumpRefusedError, match="0 MiB of free space, but the unpacked dump and the dump and the live"):
        dumped.dump(tmp_path / "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["existing", "link"]
    assert existing.read_text() == "mine"


@pytest.mark.parametrize("step", ["dump the tables", "encrypt"])
def test_an_interrupted_or_killed_dump_leaves_no_file(dumped: Dumped, tmp_path: Path, step: str) -> None:
    def interrupt(reported: str) -> None:
        if reported == step:
            raise KeyboardInterrupt

    file = tmp_path / "new.dump"
    with pytest.raises(KeyboardInterrupt):
        dumped.dump(file, report=interrupt)
    assert not dumped.unpacked()
    server, postgres = dumped.server, dumped.postgres
    described: dict[str, object] = {
        "home": str(postgres.directory),
        "rootfs": str(postgres.rootfs),
        "admin": server.admin,
    }
    described |= {"port": server.port, "database": DATABASE, "key": KEY}
    command = [sys.executable, "-m", "tests.backups.killed_dump", step, json.dumps(described), str(file)]
    assert subprocess.run(command, cwd=MIGRATIONS.parent, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    dumped.dump(file)
    assert not dumped.unpacked()  # not that of the killed one either
    assert list(tmp_path.iterdir()) == [file]


def test_a_chunk_that_is_emptied_meanwhile_is_dumped_as_it_was(dumped: Dumped, tmp_path: Path) -> None:
    """TRUNCATE, and so a compression, obeys no snapshot: it waits for the dump."""
    chunk = dumped.sql("SELECT format('%s', c) FROM show_chunks('llm_traces') AS c LIMIT 1")[0][0]
    refused = []

    def truncate(step: str) -> None:
        if step == "dump the tables":
            with pytest.raises(psycopg.errors.LockNotAvailable):
                dumped.sql(f"SET lock_timeout = 100; TRUNCATE {chunk}")
            refused.append(chunk)

    manifest = dumped.dump(tmp_path / "new.dump", report=truncate)
    assert refused
    assert manifest.rows.hypertables['"public"."llm_traces"'] == TRACES
