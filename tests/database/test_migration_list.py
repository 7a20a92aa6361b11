"""The list of migrations also works where a deployment would be refused."""

from pathlib import Path

from observatory.database import list_migrations
from tests.database.conftest import Deploy, WriteMigrations


def test_the_list_names_what_is_applied_interrupted_and_pending(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();", _002_b="CREATE TABLE b ();")
    run_deploy(migrations=directory, target=1)

    listed = list_migrations(conninfo, migrations=directory)

    assert (listed.version, listed.problem) == (1, None)
    assert [(each.file, each.state, each.applied_by) for each in listed.migrations] == [
        ("001_a.sql", "applied", "tester"),
        ("002_b.sql", "pending", None),
    ]


def test_the_list_reports_what_would_stop_a_deployment(
    run_deploy: Deploy, conninfo: str, write_migrations: WriteMigrations, tmp_path: Path
) -> None:
    directory = write_migrations(_001_a="CREATE TABLE a ();")
    run_deploy(migrations=directory)
    write_migrations(_001_a="CREATE TABLE a (id int);")
    edited = list_migrations(conninfo, migrations=directory)
    missing = list_migrations(conninfo, migrations=tmp_path / "nowhere")

    assert edited.problem
    assert "001_a.sql:1:17: was edited after it was applied" in edited.problem
    assert missing.problem
    assert "nowhere" in missing.problem
    assert [each.file for each in missing.migrations] == ["001_a.sql"]
