"""Reads the migration files and checks their names, numbers, encoding and edition variants.

Does not parse SQL, so that a deployment with nothing to do stays fast; `observatory.database.migrations.statements`
parses it.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from observatory.database.errors import MigrationFileError
from observatory.database.excerpts import excerpt
from observatory.database.migrations.numbering import FIRST_OWN, RENUMBER, check_own_numbers, title_in

Edition = Literal["apache", "community"]
EDITIONS: tuple[Edition, ...] = get_args(Edition)

REPEATABLE = "R__"  # at the start of the name of a repeatable migration
MAX_BYTES = 64 * 1024 * 1024  # PostgreSQL's parser needs several times the memory

_READ_SIZE = 64 * 1024
_FILE_NAME = re.compile(r"(([0-9]{3,9})_[a-z0-9_]+)(?:\.(apache|community))?\.sql")  # name, version, variant
_REPEATABLE_NAME = re.compile(r"(R__[a-z][a-z0-9_]*)()(?:\.(apache|community))?\.sql")  # the same groups

_OTHER_TOOLS = (
    ("Flyway", re.compile(r"([VUB][0-9][0-9._]*)__.*\.sql")),
    ("golang-migrate", re.compile(r".*\.(up|down)\.sql")),
    ("Diesel", re.compile(r"(up|down)\.sql")),
    ("sqitch", re.compile(r"sqitch\.(plan|conf)")),
    ("Liquibase", re.compile(r".*changelog.*\.(xml|yaml|yml|json|sql)")),
    ("Atlas", re.compile(r"atlas\.(sum|hcl)")),
)
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_REMEDIES = {
    errno.EACCES: "Give the user that deploys the permission to read it",
    errno.ELOOP: "The symbolic link points to itself: replace it by the file",
    errno.ENOENT: "The symbolic link has no target: replace it by the file",
}


class Migration(NamedTuple):
    """One migration file. A NamedTuple, because a run with nothing to do may create thousands of them.

    Attributes:
        version: its number; the product's start at 1, own ones at 500; 0 is a repeatable migration.
        name: number and title as in the file's name, `001_initial_schema`.
        variant: the edition of TimescaleDB that the file is for; None is for all.
        directory: of the file.
        sha256: of the file's bytes, in hexadecimal.
        sql: the file's text.
    """

    version: int
    name: str
    variant: Edition | None
    directory: Path
    sha256: str
    sql: str

    @property
    def file(self) -> str:
        """The file's name, `004_continuous_aggregates.apache.sql`."""
        return f"{self.name}.{self.variant}.sql" if self.variant else f"{self.name}.sql"

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / self.file

    def place(self, offset: int = 0) -> str:
        """Return `file:line:column` of a character; `offset` counts from 0, line and column count from 1."""
        before = self.sql[:offset]
        return f"{self.file}:{before.count(chr(10)) + 1}:{offset - before.rfind(chr(10))}"


def load_migrations(directory: Path, edition: Edition) -> tuple[Migration, ...]:
    """Return the migrations of one edition, by version.

    Raises:
        MigrationFileError: see `read_migrations`.
    """
    return select_edition(read_migrations(directory), edition)


def read_migrations(directory: Path) -> tuple[Migration, ...]:
    """Return every migration file of a directory with all variants, by version.

    Args:
        directory: holds `NNN_name.sql`, or `NNN_name.apache.sql` and `NNN_name.community.sql`; hidden files are
            ignored.

    Raises:
        MigrationFileError: a file with another name, a missing or duplicate number, an own file with a number of the
            product, an incomplete pair of variants, or a file that `read_unchecked` refuses.
    """
    migrations = read_unchecked(directory)
    check_own_numbers({migration.name for migration in migrations})
    _check_variants(migrations)
    _check_gaps(migrations)
    return migrations


def read_unchecked(directory: Path) -> tuple[Migration, ...]:
    """Return every migration file of a directory, by version; their numbers and variants may contradict each other.

    Raises:
        MigrationFileError: a file with another name, or a file that is unreadable, not a regular file, too large, empty
            or not plain UTF-8 with Unix line ends.
    """
    with _reading():
        found = (_read(directory, name) for name in sorted(_names(directory)))
        return tuple(sorted(found, key=lambda migration: migration.version))


def read_repeatables(directory: Path, edition: Edition | None = None) -> tuple[Migration, ...]:
    """Return the repeatable migrations `R__name.sql` of an edition, by name; their version is 0.

    Args:
        directory: of the migrations.
        edition: None is every file with all variants.

    Raises:
        MigrationFileError: see `read_migrations`.
    """
    with _reading():
        names = sorted(name for name in os.listdir(directory) if name.startswith(REPEATABLE))  # noqa: PTH208
        found = [_read(directory, name) for name in names]
    for name, group in groupby(found, key=lambda migration: migration.name):
        variants = [migration.variant for migration in group]
        if variants != [None] and set(variants) != set(EDITIONS):
            raise MigrationFileError(
                f"{name}.sql:1:1: has some variants. Write either {name}.sql, or both {name}.apache.sql and "
                f"{name}.community.sql"
            )
    return tuple(found) if edition is None else select_edition(found, edition)


def read_manifest(directory: Path, edition: Edition) -> list[str]:
    """Return a line for each file of an edition, sorted: its name and the SHA-256 of its bytes.

    The ledger of a database that has exactly these files gives the same lines. Checks nothing and skips the files of
    the other edition, so it takes half the time of `read_migrations`.

    Raises:
        MigrationFileError: a file or the directory is unreadable.
    """
    others = tuple(f".{other}.sql" for other in EDITIONS if other != edition)
    with _reading():
        return sorted(
            f"{name.removesuffix('.sql')} {hashlib.sha256(_contents(directory, name)).hexdigest()}"
            for name in _names(directory)
            if not name.endswith(others)
        )


def select_edition(migrations: Iterable[Migration], edition: Edition) -> tuple[Migration, ...]:
    """Return the migrations that run on an edition."""
    return tuple(migration for migration in migrations if migration.variant in {None, edition})


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MigrationFileError(
            f"{error.filename}: {error.strerror}. Pass a readable directory of migrations"
        ) from error


def _names(directory: Path) -> list[str]:
    """Return the names of the numbered files, without hidden ones."""
    return [name for name in os.listdir(directory) if not name.startswith((".", REPEATABLE))]  # noqa: PTH208 - thousands of Paths


def _read(directory: Path, name: str) -> Migration:
    match = (_REPEATABLE_NAME if name.startswith(REPEATABLE) else _FILE_NAME).fullmatch(name)
    if match is None:
        tool = next((tool for tool, names in _OTHER_TOOLS if names.fullmatch(name)), None)
        if tool:
            raise MigrationFileError(
                f"{excerpt(name)}:1:1: is the name of a file of {tool}. Keep the statements of the way forward in a "
                "file NNN_name.sql with the next free number, and move the files of the way back out of the directory: "
                "a migration here has no way back, see docs/migrations.md"
            )
        raise MigrationFileError(
            f"{excerpt(name)}:1:1: not the name of a migration. Name it NNN_name.sql or R__name.sql, or with "
            ".apache.sql and .community.sql at the end, in lower case, or move it out of the directory"
        )
    data = _contents(directory, name)
    stem, version, variant = cast("tuple[str, str, Edition | None]", match.groups())
    return Migration(int(version or 0), stem, variant, directory, hashlib.sha256(data).hexdigest(), _decode(name, data))


def _contents(directory: Path, name: str) -> bytes:
    """Return the file's bytes, unbuffered: a run with nothing to do reads thousands of files."""
    path = f"{directory}/{name}"
    try:
        _refuse_special(name, os.stat(path))  # noqa: PTH116 - thousands of Paths
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(descriptor, _READ_SIZE)
            while more := os.read(descriptor, _READ_SIZE):
                data += more
            return data
        finally:
            os.close(descriptor)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Restore the file, or move it out of the directory")
        raise MigrationFileError(f"{excerpt(name)}:1:1: cannot be read: {error.strerror}. {remedy}") from error


def _refuse_special(name: str, status: os.stat_result) -> None:
    """Refuse what a migration is never stored in: reading it could wait for ever, have no end, or exhaust memory."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise MigrationFileError(
            f"{excerpt(name)}:1:1: is {kind}, not a regular file. Move it out of the directory of migrations"
        )
    if status.st_size > MAX_BYTES:
        raise MigrationFileError(
            f"{excerpt(name)}:1:1: has {status.st_size:,} bytes; the limit is {MAX_BYTES:,}. Split it, or load its "
            "rows by COPY outside the migrations"
        )


def _decode(name: str, data: bytes) -> str:
    """Return the file's text; refuse bytes that PostgreSQL, git and reviewers would show differently."""
    if not data:
        raise MigrationFileError(f"{name}:1:1: the file is empty. Write a statement, or delete the file")
    if data.startswith(codecs.BOM_UTF8):
        raise MigrationFileError(f"{name}:1:1: starts with a byte order mark. Save the file as UTF-8 without BOM")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _byte_place(name, data, error.start)
        raise MigrationFileError(
            f"{place}: byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8"
        ) from error
    for character, meaning in (
        ("\r", "a Windows line end. Save the file with Unix line ends"),
        ("\0", "a NUL character. Remove it"),
    ):
        if character in text:
            raise MigrationFileError(f"{_byte_place(name, data, data.index(character.encode()))}: contains {meaning}")
    return text


def _byte_place(name: str, data: bytes, offset: int) -> str:
    before = data[:offset].decode("utf-8")
    return f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def _check_variants(migrations: Sequence[Migration]) -> None:
    for version, group in groupby(migrations, key=lambda migration: migration.version):
        files = list(group)
        if len(files) == 1 and files[0].variant is None:
            continue
        names = " and ".join(f"{migration.file}:1:1" for migration in files)
        variants = [migration.variant for migration in files]
        if len(variants) != len(set(variants)) or (None in variants and len(variants) > 1):
            raise MigrationFileError(
                f"{names}: two files have number {version}. Give the newer one the next free number"
            )
        if len({migration.name for migration in files}) > 1:
            raise MigrationFileError(
                f"{names}: the variants of number {version} have different names. Give them one name"
            )
        if None not in variants and len(variants) < len(EDITIONS):
            missing = ", ".join(edition for edition in EDITIONS if edition not in variants)
            raise MigrationFileError(
                f"{names}: there is no variant for {missing}. Add it, or remove the edition from the file's name"
            )


def _check_gaps(migrations: Sequence[Migration]) -> None:
    """Refuse a missing number; the gap between the product's migrations and own ones is allowed.

    Raises:
        MigrationFileError: names the file after the gap.
    """
    if migrations and migrations[0].version != 1:
        raise MigrationFileError(
            f"{migrations[0].place()}: the first migration must have number 001. Restore the files before it"
        )
    for before, after in pairwise(migrations):
        expected = before.version + 1
        if after.version <= expected or (before.version < FIRST_OWN == after.version):
            continue
        missing = FIRST_OWN if before.version < FIRST_OWN < after.version else expected
        raise MigrationFileError(
            f"{after.place()}: number {missing:03d} is missing before it. Restore the missing file, or give this file "
            f"number {missing:03d}; where a database has it applied, also run {RENUMBER} "
            f"{missing:03d}_{title_in(after.name)}.sql --reason TEXT"
        )
