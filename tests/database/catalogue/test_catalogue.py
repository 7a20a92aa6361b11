"""The committed catalogue equals one that is generated from the migrations."""

from pathlib import Path
from typing import Literal

import psycopg
import pytest

from observatory.database import catalogue, load_migrations
from observatory.database.catalogue import Object
from observatory.database.catalogue_generation import generate_catalogue
from tests.database.conftest import SHIPPED, WriteMigrations


@pytest.mark.parametrize("edition", ["apache", pytest.param("community", marks=pytest.mark.community)])
def test_the_committed_catalogue_is_up_to_date(conninfo: str, edition: Literal["apache", "community"]) -> None:
    made = generate_catalogue(conninfo, migrations=SHIPPED, edition=edition)

    assert made == catalogue.load(edition), "run `make catalogue` and commit what it wrote"


@pytest.mark.parametrize("edition", ["apache", "community"])
def test_the_committed_catalogue_was_generated_from_these_files(edition: Literal["apache", "community"]) -> None:
    committed = catalogue.load(edition)
    files = load_migrations(SHIPPED, edition)

    assert [step.sha256 for step in committed.steps] == [file.sha256 for file in files], "run `make catalogue`"


def test_each_step_has_the_changes_of_its_migration(
    conninfo: str, write_migrations: WriteMigrations, tmp_path: Path
) -> None:
    directory = write_migrations(
        _001_a="CREATE TABLE a (id int); CREATE TABLE b ();",
        _002_b="ALTER TABLE a ALTER id TYPE bigint; DROP TABLE b; CREATE INDEX i ON a (id);",
        _500_own="CREATE TABLE own ();",
    )

    made = generate_catalogue(conninfo, migrations=directory, edition="apache")

    column, index = Object("column", "public.a.id"), Object("index", "public.i")
    assert len(made.steps) == 2
    assert made.steps[1].sets == {column: "bigint", index: "CREATE INDEX i ON public.a USING btree (id)"}
    assert made.steps[1].removes == (Object("table", "public.b"),)
    assert made.at(1)[column] == "integer"
    assert Object("table", "public.b") in made.at(1)
    assert set(made.at(2)) == {Object("table", "public.a"), column, index}
    assert made.at(0) == {}
    catalogue.write(made, tmp_path)
    assert catalogue.load("apache", tmp_path) == made


def test_invalid_indexes_and_unvalidated_constraints_are_marked(conninfo: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE a (id int)")
        connection.execute("INSERT INTO a VALUES (1), (1)")
        connection.execute("ALTER TABLE a ADD CONSTRAINT c CHECK (id > 1) NOT VALID")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY i ON a (id)")
        objects = catalogue.read_objects(connection)

    assert objects[Object("index", "public.i")].endswith(" (invalid)")
    assert objects[Object("constraint", "public.a.c")].endswith(" NOT VALID")
