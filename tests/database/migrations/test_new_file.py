"""New migration files: numbers of the own range, whole files, and names that are refused."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observatory.database import MigrationFileError, MigrationNameError, create_migration
from tests.database.conftest import WriteMigrations


def test_new_files_continue_the_own_range(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    first = create_migration(directory, "add_region")
    second = create_migration(directory, "add_zone2")

    assert (first.name, second.name) == ("500_add_region.sql", "501_add_zone2.sql")
    assert first.read_text().startswith("-- Add region\n--\n")
    assert first.stat().st_mode & 0o777 == 0o644
    assert sorted(file.name for file in directory.iterdir()) == ["001_a.sql", first.name, second.name]


def test_two_processes_do_not_take_one_number(write_migrations: WriteMigrations) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_migration(directory, f"file_{number}"), range(8)))

    assert sorted(int(file.name[:3]) for file in made) == list(range(500, 508))


@pytest.mark.parametrize(
    "name", ["", "Add_region", "add-region", "../evil", "009_add", "a b", "ä", "x" * 101, "a.apache", "a\n", "_a"]
)
def test_unusable_names_are_refused(write_migrations: WriteMigrations, name: str) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    with pytest.raises(MigrationNameError, match="is not the name of a migration"):
        create_migration(directory, name)
    assert [file.name for file in directory.iterdir()] == ["001_a.sql"]


def test_an_existing_name_is_refused(write_migrations: WriteMigrations, tmp_path: Path) -> None:
    directory = write_migrations(_001_a="SELECT 1;")
    with pytest.raises(MigrationFileError, match=r"001_a\.sql: this migration exists"):
        create_migration(directory, "a")
    with pytest.raises(MigrationFileError, match="nowhere: no file can be written there: No such file"):
        create_migration(tmp_path / "nowhere", "b")
