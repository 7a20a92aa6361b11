"""Makes a dump: one encrypted file with all rows of the database, for a move to another server or version.

The file is a tar archive in age's format: `manifest.json`, then the files of pg_dump's directory format. It has its
name only when it is whole. Does not own what restores it (`observatory.backups.dump_restore`).
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from observatory.backups.dump_manifest import DumpedFile, DumpError, DumpRefusedError, Manifest
from observatory.backups.dump_server import DumpServer, check_space, workers
from observatory.backups.dump_snapshot import Snapshot, exported_snapshot
from observatory.database.connection import with_database
from observatory.database.error_translation import translate_errors
from observatory.files.atomic import PRIVATE, creating
from observatory.runtime import Sandbox
from observatory.security.age_files import BLOCK, encrypting

MANIFEST = "manifest.json"
ARCHIVE = "archive"  # the directory that pg_dump writes
_OPTIONS = ("--format=directory", "--compress=zstd:3", "--lock-wait-timeout=60s", "--no-sync")


def create_dump(
    server: DumpServer, database: str, file: Path, *, key: str, report: Callable[[str], None] = lambda _step: None
) -> Manifest:
    """Dump a database into a new file, of mode 0600 and encrypted for a private key of age.

    Args:
        server: of the database.
        database: its name.
        file: which must not exist.
        key: whose owner can restore the dump.
        report: gets each step.

    Returns:
        What the dump contains.

    Raises:
        DumpRefusedError: the file exists, or its directory or the server lacks space; nothing was begun.
        DumpError: a program failed or the file cannot be written; no file is left.
        DatabaseError: the server does not answer or rejected a statement.
    """
    _check_file(file)
    conninfo = with_database(server.admin, database)
    with translate_errors(f"dump of {database}"), exported_snapshot(conninfo) as snapshot:
        size = snapshot.table_bytes()
        dump = (file.parent.absolute(), size, "the dump")
        check_space([(server.disk, size, "the unpacked dump"), dump, server.reserve])
        with server.scratch() as place:
            report("count the rows")
            described, rows = snapshot.described(), snapshot.rows()
            report("dump the tables")
            _run_pg_dump(server, snapshot, database, place)
            manifest = Manifest(**described, rows=rows, files=_files(server.sandbox, place))
            report("encrypt")
            with _new_file(file) as target, encrypting(target, key) as content:
                _pack(manifest, server.sandbox, place, content)
    return manifest


def _check_file(file: Path) -> None:
    if file.is_symlink() or file.exists():
        raise DumpRefusedError(f"{file} exists, and a dump overwrites nothing", remedy="Name another file.")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise DumpRefusedError(f"{file.parent} is no directory that can be written to", remedy="Name another file.")


def _run_pg_dump(server: DumpServer, snapshot: Snapshot, database: str, place: str) -> None:
    target = f"--file={place}/{ARCHIVE}"
    server.program(
        "pg_dump", *_OPTIONS, f"--jobs={workers()}", f"--snapshot={snapshot.name}", target, f"--dbname={database}"
    )


def _files(sandbox: Sandbox, place: str) -> dict[str, DumpedFile]:
    names = sorted(each.name for each in sandbox.host_path(f"{place}/{ARCHIVE}").iterdir())
    return {f"{ARCHIVE}/{name}": _described(sandbox, f"{place}/{ARCHIVE}/{name}") for name in names}


def _described(sandbox: Sandbox, path: str) -> DumpedFile:
    digest, size = hashlib.sha256(), 0
    with sandbox.open_read(path) as content:
        while block := content.read(BLOCK):
            digest.update(block)
            size += len(block)
    return DumpedFile(bytes=size, sha256=digest.hexdigest())


def _pack(manifest: Manifest, sandbox: Sandbox, place: str, target: IO[bytes]) -> None:
    text = manifest.model_dump_json(indent=1).encode()
    with tarfile.open(fileobj=target, mode="w|", bufsize=BLOCK) as archive:
        first = tarfile.TarInfo(MANIFEST)
        first.size, first.mode = len(text), PRIVATE
        archive.addfile(first, io.BytesIO(text))
        for name in manifest.files:
            member = tarfile.TarInfo(name)
            member.size, member.mode = manifest.files[name].bytes, PRIVATE
            with sandbox.open_read(f"{place}/{name}") as content:
                archive.addfile(member, content)


@contextmanager
def _new_file(file: Path) -> Iterator[IO[bytes]]:
    """Yield the new file; raises DumpRefusedError where it was made meanwhile, DumpError where it cannot be written."""
    try:
        with creating(file) as target:
            yield target
    except FileExistsError:
        raise DumpRefusedError(f"{file} was made meanwhile, and a dump overwrites nothing") from None
    except OSError as error:
        raise DumpError(f"{file} cannot be written: {error}", remedy="Name a file on another disk.") from error
