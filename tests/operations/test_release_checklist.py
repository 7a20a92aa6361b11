"""The checklist of a release has what can be known before; it runs on a real stack in tests/stack/test_delivery.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.database.migrations.files import Migration, read_migrations
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import Manifest
from observatory.operations.release_checklist import (
    ChecklistItem,
    ReleasePlan,
    _catalogue_gaps,
    _schema_gaps,
    refuse,
)
from observatory.platforms import platform_of
from observatory.settings import LocalSettings
from observatory.workspace import Workspace
from tests.support.checkout import SOURCE

NEW = "ALTER TABLE projects ADD COLUMN added text;\n"
MANIFEST = Manifest(name="storage-service", version="v0.2.0", sha256="a" * 64, schema_min=3, schema_max=8)


def migration(directory: Path, text: str = NEW) -> Migration:
    (directory / "001_added.sql").write_text(text)
    [made] = read_migrations(directory)
    return made._replace(version=9)


def test_a_migration_without_a_catalogue_is_known_before_it_runs(tmp_path: Path) -> None:
    committed = [each for each in read_migrations(SOURCE / "migrations") if each.variant in (None, "apache")]
    assert list(_catalogue_gaps("apache", committed)) == []
    [gap] = _catalogue_gaps("apache", [migration(tmp_path)])
    assert gap == "the catalogue was not made from this 001_added.sql: run `make catalogue` and commit its files"


@pytest.mark.parametrize(
    ("newest", "text", "expected"),
    [
        (9, NEW, []),
        (2, NEW, ["it needs schema 3, and the migrations of this checkout end at 2"]),
        (9, f"-- phase: contract\n{NEW}", ["it supports schema 8, and 001_added.sql removes what it needs"]),
    ],
)
def test_a_version_must_work_with_the_migrated_schema(
    newest: int, text: str, expected: list[str], tmp_path: Path
) -> None:
    platform = platform_of(Workspace(root=tmp_path, stack="local"), LocalSettings())
    (tmp_path / "migrations").mkdir()
    pending = [migration(tmp_path / "migrations", text)]
    assert list(_schema_gaps(platform, MANIFEST, newest, pending)) == expected


def test_every_objection_is_in_the_refusal() -> None:
    items = tuple(ChecklistItem(name=name, objection=name) for name in ("one", "", "two"))
    plan = ReleasePlan(version="v0.2.0", checklist=items, schema_version=8, migrations=(), deployment=None)
    with pytest.raises(DeliveryRefusedError, match=r"^v0\.2\.0 was not deployed, nothing was changed: one; two$"):
        refuse(plan)
    refuse(ReleasePlan(version="v0.2.0", checklist=items[1:2], schema_version=8, migrations=(), deployment=None))
