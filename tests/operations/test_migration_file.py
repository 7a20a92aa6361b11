"""The file that `deploy database --migration` names."""

from pathlib import Path

import pytest

from observatory import operations
from observatory.database import MigrationFileError
from observatory.errors import ObservatoryError
from observatory.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A checkout with one migration, and a file of the same name beside it; the current directory is the checkout."""
    for directory in ("migrations", "elsewhere"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "001_a.sql").write_text("SELECT 1;")
    (tmp_path / "link").symlink_to("migrations")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return Workspace(root=tmp_path, stack="local")


@pytest.mark.parametrize(
    "path",
    ["elsewhere/001_a.sql", "{root}/elsewhere/001_a.sql", "migrations/../001_a.sql", "./001_a.sql", "loop/001_a.sql"],
)
def test_a_path_outside_the_directory_of_migrations_is_refused(workspace: Workspace, path: str) -> None:
    for operation in (operations.plan_database, operations.deploy_database):
        with pytest.raises(MigrationFileError, match=r"001_a\.sql: is not in .*/migrations"):
            operation(workspace, migration=path.format(root=workspace.root))


@pytest.mark.parametrize("path", ["001_a.sql", "migrations/001_a.sql", "{root}/migrations/001_a.sql", "link/001_a.sql"])
def test_a_name_and_a_path_in_the_directory_are_accepted(workspace: Workspace, path: str) -> None:
    with pytest.raises(ObservatoryError, match=r"Pulumi\.yaml does not exist"):  # the next thing that is missing
        operations.plan_database(workspace, migration=path.format(root=workspace.root))
