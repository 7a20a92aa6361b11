"""Reading a directory of migrations: names, numbers, variants and encoding."""

import contextlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from observatory.database import MigrationFileError, load_migrations, read_migrations
from observatory.database.migrations.files import MAX_BYTES, read_manifest
from observatory.database.migrations.numbering import PRODUCT
from tests.database.conftest import SHIPPED, WriteMigrations


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("V1__init.sql", "Flyway"),
        ("U1.2__init.sql", "Flyway"),
        ("500_a.down.sql", "golang-migrate"),
        ("500_a.up.sql", "golang-migrate"),
        ("down.sql", "Diesel"),
        ("sqitch.plan", "sqitch"),
        ("db.changelog-master.xml", "Liquibase"),
        ("atlas.sum", "Atlas"),
    ],
)
def test_a_file_of_another_tool_is_named_with_the_way_to_convert(
    write_migrations: WriteMigrations, name: str, tool: str
) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    (directory / name).write_text("SELECT 1;", encoding="utf-8")

    with pytest.raises(MigrationFileError, match=rf"^{re.escape(name)}:1:1: is the name of a file of {tool}\. Keep"):
        read_migrations(directory)


def test_files_are_sorted_by_number(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_002_b="SELECT 2;", _001_a="SELECT 1;")

    migrations = read_migrations(directory)

    assert [(migration.version, migration.name) for migration in migrations] == [(1, "001_a"), (2, "002_b")]
    assert migrations[0].sha256 == "17db4fd369edb9244b9f91d9aeed145c3d04ad8ba6e95d06247f07a63527d11a"


def test_more_than_three_digits_sort_as_numbers(tmp_path: Path) -> None:
    for number in range(1, 1002):
        (tmp_path / f"{number:03d}_a.sql").write_text("SELECT 1;")

    assert [migration.version for migration in read_migrations(tmp_path)] == list(range(1, 1002))


def test_each_edition_gets_its_variant(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(
        _001_a="SELECT 1;", **{"002_b.apache": "SELECT 'a';", "002_b.community": "SELECT 'c';"}
    )

    assert [migration.path.name for migration in load_migrations(directory, "apache")] == [
        "001_a.sql",
        "002_b.apache.sql",
    ]
    assert [migration.variant for migration in load_migrations(directory, "community")] == [None, "community"]


def test_hidden_files_are_ignored(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    (directory / ".001_a.sql.swp").write_bytes(b"\xff")

    assert len(read_migrations(directory)) == 1


def test_the_shipped_migrations_load_for_both_editions() -> None:
    for edition in ("apache", "community"):
        names = [migration.name for migration in load_migrations(SHIPPED, edition)]
        assert names == [
            *("001_initial_schema", "002_add_hypertables", "003_create_indexes"),
            *("004_continuous_aggregates", "005_retention_policies", "006_supporting_tables"),
            "007_text_limits_and_read_indexes",
            "008_quiet_refresh",
        ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["001_a", "003_c"], r"003_c\.sql:1:1: number 002 is missing"),
        (["002_b"], r"002_b\.sql:1:1: the first migration must have number 001"),
        (["001_a", "001_b"], r"001_a\.sql:1:1 and 001_b\.sql:1:1: two files have number 1"),
        (["001_a", "501_b"], r"501_b\.sql:1:1: number 500 is missing before it.*--repair renumber 500_b\.sql"),
        (["001_a", "500_b", "502_c"], r"502_c\.sql:1:1: number 501 is missing before it"),
        (["001_a", "003_b", "500_c"], r"003_b\.sql:1:1: number 002 is missing before it"),
        (
            ["001_initial_schema", "002_add_hypertables", "003_mine", "500_own", "007_other"],
            r"003_mine\.sql:1:1: .* own ones start at 500\. Rename: name 003_mine\.sql 501_mine\.sql; name 007_other",
        ),
        (["001_a", "0001_a"], "two files have number 1"),
        (["001_a", "001_a.apache"], "two files have number 1"),
        (["001_a.apache"], r"001_a\.apache\.sql:1:1: there is no variant for community"),
        (["001_a.apache", "001_b.community"], "have different names"),
        (["1_a"], r"1_a\.sql:1:1: not the name of a migration"),
        (["001_A"], r"001_A\.sql:1:1: not the name of a migration"),
        (["001_a.enterprise"], "not the name of a migration"),
    ],
)
def test_unusable_names_and_numbers_are_refused(
    write_migrations: WriteMigrations, names: list[str], message: str
) -> None:
    directory = write_migrations(**dict.fromkeys(names, "SELECT 1;"))

    with pytest.raises(MigrationFileError, match=message):
        read_migrations(directory)


def test_other_files_in_the_directory_are_refused(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    (directory / "002_b.SQL").write_text("SELECT 2;")

    with pytest.raises(MigrationFileError, match=r"002_b\.SQL:1:1: not the name of a migration"):
        read_migrations(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"001_a\.sql:1:1: the file is empty"),
        (b"\xef\xbb\xbfSELECT 1;", r"001_a\.sql:1:1: starts with a byte order mark"),
        (b"SELECT 1;\r\nSELECT 2;\r\n", r"001_a\.sql:1:10: contains a Windows line end"),
        ("-- ä\nSELECT 'é".encode() + b"\xe9';", r"001_a\.sql:2:10: byte 0xe9 is not UTF-8"),
        (b"SELECT 1;\n\0", r"001_a\.sql:2:1: contains a NUL"),
    ],
)
def test_unusable_bytes_are_refused_with_their_place(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "001_a.sql").write_bytes(content)

    with pytest.raises(MigrationFileError, match=message):
        read_migrations(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(MigrationFileError, match="missing: No such file"):
        read_migrations(tmp_path / "missing")


def _directory(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _dangling(path: Path) -> None:
    path.symlink_to("missing.sql")


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (_directory, "is a directory, not a regular file. Move it out"),
        (os.mkfifo, "is a named pipe, not a regular file. Move it out"),
        (_socket, "is a socket, not a regular file. Move it out"),
        (_endless, "is a device, not a regular file. Move it out"),
        (_loop, "cannot be read: .* points to itself: replace it"),
        (_dangling, "cannot be read: .* has no target: replace it"),
        (_huge, "has 67,108,865 bytes; the limit is 67,108,864. Split it"),
    ],
)
def test_only_regular_files_of_bounded_size_are_read(
    tmp_path: Path, create: Callable[[Path], None], message: str
) -> None:
    (tmp_path / "001_a.sql").write_text("SELECT 1;")
    create(tmp_path / "002_b.sql")

    for read in (read_migrations, lambda directory: read_manifest(directory, "apache")):
        with pytest.raises(MigrationFileError, match=rf"^002_b\.sql:1:1: {message}"):
            read(tmp_path)


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / ".stored.sql").write_text("SELECT 1;")
    (tmp_path / "files/001_a.sql").symlink_to("../.stored.sql")

    assert [migration.sql for migration in read_migrations(tmp_path / "files")] == ["SELECT 1;"]


@pytest.mark.parametrize("name", ["\u0660\u0660\u0661_a.sql", "001_a\n.sql", "001_\udcff.sql"])
def test_a_name_is_refused_in_characters_that_every_terminal_prints(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("SELECT 1;")

    with pytest.raises(MigrationFileError, match="not the name of a migration") as caught:
        read_migrations(tmp_path)
    assert str(caught.value).isprintable()
    assert str(caught.value).encode()


def test_own_migrations_follow_the_products_after_a_gap(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="SELECT 1;", _002_b="SELECT 1;", _500_c="SELECT 1;", _501_d="SELECT 1;")

    assert [migration.version for migration in read_migrations(directory)] == [1, 2, 500, 501]


def test_the_list_of_the_products_migrations_is_that_of_its_files() -> None:
    assert sorted({migration.name for migration in read_migrations(SHIPPED)}) == list(PRODUCT)
