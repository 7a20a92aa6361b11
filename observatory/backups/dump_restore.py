"""Restores a dump into a new database of a server, in the order that TimescaleDB needs, and compares the rows.

A plain pg_restore with several processes breaks TimescaleDB's catalogue without an error: the rows are in chunks that
their hypertable does not have. So the catalogue's rows are restored before the others, by one process.

Does not own the dump's file (`observatory.backups.dump`) nor what the database takes the place of.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql
from pydantic import ValidationError

from observatory.backups.dump import ARCHIVE, MANIFEST
from observatory.backups.dump_manifest import CronJob, DumpedFile, DumpError, DumpRefusedError, Manifest, Role, Setting
from observatory.backups.dump_server import DumpServer, check_space, workers
from observatory.backups.dump_snapshot import count_all_rows
from observatory.database.connection import connect, with_database
from observatory.database.error_translation import translate_errors
from observatory.database.pg_cron_jobs import PREFIX
from observatory.runtime import Sandbox
from observatory.security.age_files import BLOCK, decrypting

MANIFEST_BYTES = 64 * 1024 * 1024
SHOWN_DIFFERENCES = 10
INCOMPLETE = "observatory: a restore of a dump has not finished"  # comment of such a database
DAMAGED_REMEDY = "Use another copy of the file, or another dump."

_CATALOGUE = re.compile(r"^\d+; \d+ \d+ (TABLE DATA|SEQUENCE SET) _timescaledb_(catalog|config|cache) ")
_DATA = re.compile(r"^\d+; \d+ \d+ (TABLE DATA|SEQUENCE SET|BLOBS|BLOB METADATA) ")
# One database of a server can have pg_cron, and its jobs would run before the rows are compared.
_PG_CRON = re.compile(r"^\d+; \d+ \d+ [A-Z ]+ (cron |- (EXTENSION )?pg_cron\b|- SCHEMA cron )")
# Their values are lists of quoted names (variable_is_guc_list_quote in src/bin/pg_dump/dumputils.c).
_LISTS = frozenset({
    *("local_preload_libraries", "search_path", "session_preload_libraries"),
    *("shared_preload_libraries", "temp_tablespaces", "unix_socket_directories"),
})  # fmt: skip
_SERVER = """
    SELECT current_setting('server_version_num')::int / 10000,
        CASE current_setting('timescaledb.license', true) WHEN 'apache' THEN 'apache' ELSE 'community' END,
        ARRAY(SELECT version FROM pg_available_extension_versions WHERE name = 'timescaledb'),
        ARRAY(SELECT name FROM pg_available_extensions)
"""
_DATABASE = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
_LOCALE = "ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LC_COLLATE 'C' LC_CTYPE 'C'"


def read_manifest(dump: Path, key: str) -> Manifest:
    """Return the manifest of a dump, after the whole file was decrypted and so found complete and unchanged.

    Raises:
        EncryptedFileError: it is no such file, or is cut, changed or encrypted for another key.
        DumpRefusedError: it is no dump of this format.
        OSError: it cannot be read.
    """
    with decrypting(dump, key) as content, _reading(dump), tarfile.open(fileobj=content, mode="r|") as archive:
        return _first(archive, dump)


def restore_dump(
    dump: Path,
    *,
    into: DumpServer,
    database: str,
    key: str,
    known: Collection[int],
    report: Callable[[str], None] = lambda _step: None,
) -> Manifest:
    """Restore a dump into a new database, and compare the number of rows of every table and chunk.

    Roles that the server lacks are made with their passwords; existing ones stay. The jobs of pg_cron are not restored:
    see `restore_cron_jobs`. TimescaleDB's own jobs run from the end of the restore on.

    Args:
        dump: the file.
        into: the server.
        database: name of the new database. One that an interrupted restore has left is replaced.
        key: private key that the dump was encrypted for.
        known: numbers of the migrations of this program.
        report: gets each step.

    Returns:
        What the dump contains.

    Raises:
        EncryptedFileError, DumpRefusedError: the file is damaged or foreign, of a newer schema or version than the
            server's, or there is too little space, or the database exists; nothing was changed.
        DumpError: the restore failed, or rows differ; the new database was removed.
        DatabaseError: the server does not answer or rejected a statement; the new database was removed.
    """
    place = f"restore of {dump} into {database}"
    report("check the dump")
    manifest = read_manifest(dump, key)
    manifest.check_schema(known)
    with connect(into.admin, purpose="restore") as admin, translate_errors(place):
        _check_server(admin, manifest)
        check_space([(into.disk, manifest.unpacked_bytes + manifest.database_bytes, "the restore"), into.reserve])
        _check_name(admin, database)
        with into.scratch() as scratch:
            report("decrypt")
            _unpack(dump, key, manifest, into.sandbox, scratch)
            with _new_database(admin, database, manifest):
                _Restore(into, manifest, database, f"{scratch}/{ARCHIVE}", report).run()
    return manifest


@dataclass(frozen=True)
class _Restore:
    """Fills an empty database with the unpacked files of a dump."""

    server: DumpServer
    manifest: Manifest
    database: str
    archive: str
    report: Callable[[str], None]

    def run(self) -> None:
        conninfo = with_database(self.server.admin, self.database)
        with connect(conninfo, purpose="restore") as connection:  # the extension is the session's first statement
            version = sql.Identifier(self.manifest.timescaledb)
            connection.execute(sql.SQL("CREATE EXTENSION timescaledb VERSION {}").format(version))
        with connect(conninfo, purpose="restore") as connection:
            connection.execute("SELECT timescaledb_pre_restore()")
        self._restore_archive()
        with connect(conninfo, purpose="restore") as connection:
            connection.execute("ANALYZE")
            self.report("compare the rows")
            self._compare(connection)
            connection.execute("SELECT timescaledb_post_restore()")

    def _restore_archive(self) -> None:
        listed = self.server.program("pg_restore", "--list", self.archive).splitlines()
        lines = [line for line in listed if line and not line.startswith(";")]
        if "pg_cron" in self.manifest.extensions:
            lines = [line for line in lines if not _PG_CRON.match(line)]
        data = [line for line in lines if _DATA.match(line)]
        catalogue = [line for line in data if _CATALOGUE.match(line)]
        self._restore("pre-data", lines, "definitions", "--section=pre-data")
        self._restore("catalogue", catalogue, "the catalogue's rows", "--section=data")
        rest = [line for line in data if line not in set(catalogue)]
        self._restore("data", rest, "rows", "--section=data", f"--jobs={workers()}")
        self._restore("post-data", lines, "indexes", "--section=post-data", f"--jobs={workers()}")

    def _restore(self, name: str, lines: Collection[str], what: str, *options: str) -> None:
        self.report(f"restore {what}")
        chosen = f"{self.archive}/../{name}.list"
        self.server.sandbox.write_file(chosen.replace(f"/{ARCHIVE}/..", ""), "\n".join(lines) + "\n")
        self.server.program(
            "pg_restore",
            "--exit-on-error",
            f"--use-list={chosen}",
            f"--dbname={self.database}",
            *options,
            self.archive,
        )

    def _compare(self, connection: psycopg.Connection) -> None:
        """Compare the rows while no job runs; this session alone reads hypertables as after the restore."""
        connection.execute("SET timescaledb.restoring = off")
        if lines := self.manifest.rows.difference(count_all_rows(connection)):
            shown = "\n".join(lines[:SHOWN_DIFFERENCES])
            raise DumpError(f"the restored rows differ from the dump's in {len(lines)} tables or chunks:\n{shown}")
        connection.execute("RESET timescaledb.restoring")


def restore_cron_jobs(conninfo: str, jobs: Sequence[CronJob]) -> None:
    """Schedule the operator's own jobs of a dump in pg_cron, in place of those in the database.

    The jobs of the schema stay as they are: `schedule_jobs` schedules those of `observatory.jobs`.

    Args:
        conninfo: the superuser's, to the database that the server's `cron.database_name` names.
        jobs: of the dump's manifest.

    Raises:
        DatabaseError: the server does not answer or rejected a statement; nothing was changed.
    """
    own = "DELETE FROM cron.job WHERE database = current_database() AND NOT starts_with(coalesce(jobname, ''), %s)"
    insert = """
        INSERT INTO cron.job (jobname, schedule, command, nodeport, database, username, active)
        VALUES (%s, %s, %s, current_setting('port')::int, current_database(), %s, %s)
    """
    with connect(conninfo, purpose="restore") as connection, translate_errors("jobs of the dump"):
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_cron")
        with connection.transaction():
            connection.execute(own, [PREFIX])
            for job in jobs:
                if not (job.name or "").startswith(PREFIX):
                    connection.execute(insert, [job.name, job.schedule, job.command, job.username, job.active])


def _first(archive: tarfile.TarFile, dump: Path) -> Manifest:
    member = archive.next()
    if member is None or member.name != MANIFEST or member.size > MANIFEST_BYTES:
        raise DumpRefusedError(f"{dump} is no dump of a database", remedy=DAMAGED_REMEDY)
    text = _content(archive, member, dump).read()
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DumpRefusedError(
            f"{dump} has a manifest that this version cannot read: {error.errors()[0]['msg']}",
            remedy="Restore it with the version of this program that made it, or a newer one.",
        ) from None


def _unpack(dump: Path, key: str, manifest: Manifest, sandbox: Sandbox, place: str) -> None:
    """Write the files of a dump into a directory of the sandbox; each must be as the manifest describes it."""
    sandbox.make_directory(f"{place}/{ARCHIVE}")
    left = dict(manifest.files)
    with decrypting(dump, key) as content, _reading(dump), tarfile.open(fileobj=content, mode="r|") as archive:
        _first(archive, dump)
        while (member := archive.next()) is not None:
            expected = left.pop(member.name, None)
            if expected is None or not re.fullmatch(rf"{ARCHIVE}/[\w.-]+", member.name):
                raise DumpRefusedError(f"{dump} has a file that its manifest lacks: {member.name}")
            with sandbox.open_append(f"{place}/{member.name}") as target:
                written = _copy(_content(archive, member, dump), target)
            if written != expected:
                raise DumpRefusedError(f"{dump} is damaged: {member.name} differs from the manifest")
    if left:
        raise DumpRefusedError(f"{dump} lacks a file of its manifest: {min(left)}", remedy=DAMAGED_REMEDY)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, dump: Path) -> IO[bytes]:
    content = archive.extractfile(member)
    if content is None:
        raise DumpRefusedError(f"{dump} is damaged: {member.name} is no file", remedy=DAMAGED_REMEDY)
    return content


def _copy(source: IO[bytes], target: IO[bytes]) -> DumpedFile:
    digest, size = hashlib.sha256(), 0
    while block := source.read(BLOCK):
        digest.update(block)
        size += target.write(block)
    return DumpedFile(bytes=size, sha256=digest.hexdigest())


@contextmanager
def _reading(dump: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise DumpRefusedError(f"{dump} is no dump of a database: {error}", remedy=DAMAGED_REMEDY) from None


def _check_server(admin: psycopg.Connection, manifest: Manifest) -> None:
    """Raises DumpRefusedError where the server cannot take the dump."""
    major, edition, versions, extensions = admin.execute(_SERVER).fetchone() or (0, "", [], [])
    if manifest.postgresql > major:
        raise DumpRefusedError(
            f"the dump is of PostgreSQL {manifest.postgresql}, and the server has {major}",
            remedy="Restore it into a server of that version or a newer one.",
        )
    if manifest.timescaledb not in versions:
        raise DumpRefusedError(
            f"the dump is of TimescaleDB {manifest.timescaledb}, and the server can only create "
            f"{', '.join(sorted(versions)) or 'none'}",
            remedy="A dump is restored into the same version, which can be updated afterwards: install that version.",
        )
    if manifest.edition == "community" and edition == "apache":
        raise DumpRefusedError(
            "the dump is of TimescaleDB's community edition, and the server runs the Apache edition",
            remedy="Restore it into a server of the community edition.",
        )
    if missing := sorted(set(manifest.extensions) - set(extensions) - {"pg_cron"}):
        raise DumpRefusedError(f"the server lacks extensions of the dump: {', '.join(missing)}")


def _check_name(admin: psycopg.Connection, database: str) -> None:
    found = admin.execute(_DATABASE, [database]).fetchone()
    if found and found[0] != INCOMPLETE:
        raise DumpRefusedError(
            f"the server has a database {database}, and a restore replaces none", remedy="Name a new database."
        )


@contextmanager
def _new_database(admin: psycopg.Connection, name: str, manifest: Manifest) -> Iterator[None]:
    """Create the database, marked as incomplete until the end of the block; a block that raises removes it."""
    database = sql.Identifier(name)
    _make_missing_roles(admin, manifest)
    admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
    try:
        create = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 " + _LOCALE)
        admin.execute(create.format(database, sql.Identifier(manifest.owner)))
        admin.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(database, sql.Literal(INCOMPLETE)))
        _apply_properties(admin, database, manifest)
        yield
        admin.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(database))
    except BaseException:
        with suppress(psycopg.Error):  # the cause matters more; the mark has the next restore replace the database
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
        raise


def _make_missing_roles(admin: psycopg.Connection, manifest: Manifest) -> None:
    existing = {name for (name,) in admin.execute("SELECT rolname FROM pg_roles").fetchall()}
    missing = [role for role in manifest.roles if role.name not in existing]
    with admin.transaction():
        admin.execute("SET LOCAL log_statement = 'none'")  # of passwords' verifiers
        for role in missing:
            admin.execute(_created(role))
            for setting in role.settings:
                name, _, value = setting.partition("=")
                target = sql.SQL("ROLE {}").format(sql.Identifier(role.name))
                admin.execute(_set(target, Setting(role=None, name=name, value=value)))
        for role in missing:
            for group in role.member_of:
                options = f"ADMIN {group.admin}, INHERIT {group.inherit}, SET {group.set}"
                grant = sql.SQL("GRANT {} TO {} WITH " + options)
                admin.execute(grant.format(sql.Identifier(group.role), sql.Identifier(role.name)))


def _created(role: Role) -> sql.Composed:
    create = sql.SQL("CREATE ROLE {} WITH CONNECTION LIMIT {} " + role.attributes)
    created = create.format(sql.Identifier(role.name), sql.Literal(role.connection_limit))
    for option, value in (("PASSWORD", role.verifier), ("VALID UNTIL", role.valid_until)):
        if value is not None:
            created += sql.SQL(f" {option} {{}}").format(sql.Literal(value))
    return created


def _set(target: sql.Composable, setting: Setting) -> sql.Composed:
    value = sql.SQL(setting.value) if setting.name in _LISTS else sql.Literal(setting.value)
    name = sql.SQL(".").join(sql.Identifier(part) for part in setting.name.split("."))
    return sql.SQL("ALTER {} SET {} TO {}").format(target, name, value)


def _apply_properties(admin: psycopg.Connection, database: sql.Identifier, manifest: Manifest) -> None:
    """Set privileges and settings of the database as they were."""
    admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    for grant in manifest.grants:
        grantee = sql.Identifier(grant.grantee) if grant.grantee else sql.SQL("PUBLIC")
        statement = sql.SQL("GRANT " + grant.privilege + " ON DATABASE {} TO {}").format(database, grantee)
        admin.execute(statement + sql.SQL(" WITH GRANT OPTION" if grant.grantable else ""))
    for setting in manifest.settings:
        target = sql.SQL("DATABASE {}").format(database)
        if setting.role:
            target = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(setting.role), database)
        admin.execute(_set(target, setting))
