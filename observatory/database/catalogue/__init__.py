"""The catalogue: the objects that a database must have at each version of the schema.

One JSON file for each edition beside this module. `make catalogue` generates them from empty databases, and they are
committed, so that verifying a deployment needs no second PostgreSQL server. A step for each migration lists the
objects that it adds, changes and removes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observatory.database.catalogue.objects import SETTINGS, Object, Objects, read_objects
from observatory.database.migrations.files import Edition
from observatory.files.atomic import write_file

__all__ = ["SETTINGS", "Catalogue", "Object", "Objects", "Step", "load", "read_objects", "write"]

DIRECTORY = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The changes of one migration.

    Attributes:
        sha256: of the migration's file.
        sets: new and changed objects with their definitions.
        removes: removed objects.
    """

    sha256: str
    sets: Objects
    removes: tuple[Object, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """The objects of each version of the schema in one edition; the step of version 1 is the first."""

    edition: Edition
    steps: tuple[Step, ...]

    def at(self, version: int) -> dict[Object, str]:
        """Return the objects of a version with their definitions; none for 0."""
        objects: dict[Object, str] = {}
        for step in self.steps[:version]:
            objects.update(step.sets)
            for removed in step.removes:
                objects.pop(removed, None)
        return objects

    def describes(self, version: int, sha256: str) -> bool:
        """Return whether the step of a version was generated from the file with this hash."""
        return 0 < version <= len(self.steps) and self.steps[version - 1].sha256 == sha256


def load(edition: Edition, directory: Path = DIRECTORY) -> Catalogue:
    """Return the committed catalogue of an edition; it has no steps where there is no file."""
    file = directory / f"{edition}.json"
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return Catalogue(edition=edition, steps=tuple(_read_step(step) for step in document))


def write(catalogue: Catalogue, directory: Path = DIRECTORY) -> Path:
    """Write a catalogue to the file that `load` reads, and return the file."""
    file = directory / f"{catalogue.edition}.json"
    document = [_written_step(step) for step in catalogue.steps]
    write_file(file, json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", mode=0o644)
    return file


def _written_step(step: Step) -> dict[str, object]:
    sets: dict[str, dict[str, str]] = {}
    for (kind, name), definition in step.sets.items():
        sets.setdefault(kind, {})[name] = definition
    return {"sha256": step.sha256, "sets": sets, "removes": [list(each) for each in step.removes]}


def _read_step(step: dict[str, Any]) -> Step:
    return Step(
        sha256=step["sha256"],
        sets={Object(kind, name): text for kind, names in step["sets"].items() for name, text in names.items()},
        removes=tuple(Object(*each) for each in step["removes"]),
    )
