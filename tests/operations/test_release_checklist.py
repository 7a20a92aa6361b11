"""The checklist of a release has what can be known before; it runs on a real stack in tests/stack/test_delivery.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from observatory.database import Plan
from observatory.database.migrations.files import Migration, read_migrations
from observatory.database.rehearsal import Verdict
from observatory.delivery.errors import DeliveryRefusedError
from observatory.delivery.releases import Manifest
from observatory.operations.release_checklist import (
    ChecklistItem,
    ReleasePlan,
    _catalogue_gap,
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


def test_a_migration_whose_objects_cannot_be_verified_is_named(tmp_path: Path) -> None:
    committed = [each for each in read_migrations(SOURCE / "migrations") if each.variant in (None, "apache")]
    alone = planned("not rehearsed", "no PostgreSQL for a rehearsal is installed on this machine")
    assert _catalogue_gap(alone, committed) == ""
    own = [*committed, migration(tmp_path)]
    assert _catalogue_gap(alone, own) == (
        "the objects of 001_added.sql cannot be verified: no PostgreSQL for a rehearsal is installed on this machine"
    )
    assert _catalogue_gap(planned("passed", "every statement ran on empty tables"), own) == ""


def planned(verdict: Verdict, detail: str) -> Plan:
    """Return a plan with this rehearsal."""
    return Plan(
        version=8,
        edition="apache",
        pending=(),
        sizes={},
        rehearsal=verdict,
        rehearsal_detail=detail,
        backup=None,
        backup_detail="",
        backup_fails=False,
        way_back="",
        refusals=(),
    )


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
