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

__all__ = [
    "SETTINGS",
    "Catalogue",
    "Object",
    "Objects",
    "Step",
    "apply_step",
    "difference",
    "load",
    "read_objects",
    "read_step",
    "step_as_document",
    "write",
]

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
            objects = apply_step(objects, step)
        return objects

    def describes(self, version: int, sha256: str) -> bool:
        """Return whether the step of a version was generated from the file with this hash."""
        return 0 < version <= len(self.steps) and self.steps[version - 1].sha256 == sha256


def difference(before: Objects, after: Objects, *, sha256: str = "") -> Step:
    """Return the step between two states of a schema."""
    sets = {each: definition for each, definition in after.items() if before.get(each) != definition}
    return Step(sha256=sha256, sets=sets, removes=tuple(sorted(before.keys() - after.keys())))


def apply_step(objects: Objects, step: Step) -> dict[Object, str]:
    """Return the objects after a step."""
    return {each: text for each, text in {**objects, **step.sets}.items() if each not in step.removes}


def load(edition: Edition, directory: Path = DIRECTORY) -> Catalogue:
    """Return the committed catalogue of an edition; it has no steps where there is no file."""
    file = directory / f"{edition}.json"
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return Catalogue(edition=edition, steps=tuple(read_step(step) for step in document))


def write(catalogue: Catalogue, directory: Path = DIRECTORY) -> Path:
    """Write a catalogue to the file that `load` reads, and return the file."""
    file = directory / f"{catalogue.edition}.json"
    document = [step_as_document(step) for step in catalogue.steps]
    write_file(file, json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", mode=0o644)
    return file


def step_as_document(step: Step) -> dict[str, object]:
    """Return a step as JSON has it."""
    sets: dict[str, dict[str, str]] = {}
    for (kind, name), definition in step.sets.items():
        sets.setdefault(kind, {})[name] = definition
    return {"sha256": step.sha256, "sets": sets, "removes": [list(each) for each in step.removes]}


def read_step(step: dict[str, Any]) -> Step:
    """Return the step of a JSON document."""
    return Step(
        sha256=step["sha256"],
        sets={Object(kind, name): text for kind, names in step["sets"].items() for name, text in names.items()},
        removes=tuple(Object(*each) for each in step["removes"]),
    )
