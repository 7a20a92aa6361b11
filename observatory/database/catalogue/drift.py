"""Compares the objects of a database with the expected ones both ways: missing, changed, and added by hand.

Owns which additions are errors, because they change what statements on the migrations' tables do, and the remedy of
each difference. Does not read the database.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from observatory.database.catalogue.differences import describe_difference
from observatory.database.catalogue.objects import Object, Objects

Difference = Literal["missing", "changed", "added"]
Severity = Literal["warning", "error"]

_SHOWN_CHARACTERS = 160
INVALID = " (invalid)"  # at the end of an index's definition
_RELATIONS = frozenset({"table", "view", "materialized view", "aggregate"})
_OWNED = _RELATIONS | {"sequence", "routine"}
_REFERENCED = re.compile(r"REFERENCES (.+?)\(")
# An object of these kinds on a relation of the migrations changes which rows are written, read or kept.
_CHANGES_BEHAVIOUR = frozenset(
    {
        *(
            "constraint",
            "trigger",
            "rule",
            "row security",
            "row security policy",
            "inheritance",
            "persistence",
            "owner",
        ),
        *("policy", "event trigger", "view option"),
    }
)
# Objects that others of the list may use come after them: their removals work in the order of the list.
_USED_BY_OTHERS = ("sequence", "operator", "cast", "routine", "type", "foreign server", "extension", "schema")
_OPTIONS = re.compile(r"\w+=[^;]*")  # of a relation, without a tablespace
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_$]*")
_DROP: Mapping[str, str] = {
    "schema": "DROP SCHEMA {name}",
    "routine": "DROP ROUTINE {routine}",
    "extension": "DROP EXTENSION {name}",
    "publication": "DROP PUBLICATION {name}",
    "foreign server": "DROP SERVER {name}",
    "cast": "DROP CAST ({full})",
    "operator": "DROP OPERATOR {full}",
    "replica identity": "ALTER TABLE {name} REPLICA IDENTITY DEFAULT",
    "view option": "ALTER VIEW {name} RESET ({options})",
    "storage": "ALTER TABLE {name} RESET ({options})",
    "inheritance": "ALTER TABLE {child} NO INHERIT {parent}",
    "table": "DROP TABLE {name}",
    "view": "DROP VIEW {name}",
    "materialized view": "DROP MATERIALIZED VIEW {name}",
    "sequence": "DROP SEQUENCE {name}",
    "type": "DROP TYPE {name}",
    "statistics": "DROP STATISTICS {name}",
    "index": "DROP INDEX {name}",
    "column": "ALTER TABLE {relation} DROP COLUMN {member}",
    "constraint": "ALTER TABLE {relation} DROP CONSTRAINT {member}",
    "trigger": "DROP TRIGGER {member} ON {relation}",
    "rule": "DROP RULE {member} ON {relation}",
    "row security policy": "DROP POLICY {member} ON {relation}",
    "row security": "ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY",
    "event trigger": "DROP EVENT TRIGGER {name}",
    "persistence": "ALTER TABLE {name} SET LOGGED",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """One difference between a database and its migrations.

    Attributes:
        difference: `missing` and `changed` are of objects that migrations made; `added` is what they did not make.
        kind: of the object: `column`, `trigger`.
        name: of the object with its schema.
        detail: what is wrong, with both definitions where it changed; of an addition, its definition.
        severity: of an addition, `error` where it changes what statements on the migrations' tables do.
        remedy: how to remove the difference.
    """

    difference: Difference
    kind: str
    name: str
    detail: str
    severity: Severity
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({self.detail}): {self.remedy}"


def find_drift(expected: Objects, found: Objects) -> list[Drift]:
    """Return the differences, by kind and name; parts of a relation that is missing or added are not listed too."""
    missing = {each for each in expected if each not in found}
    added = {each for each in found if each not in expected}
    partitions = {
        each.name.partition(" of ")[0]
        for each, text in found.items()
        if each.kind == "inheritance" and text != "inherits"
    }
    added = {each for each in added if not (each.kind == "table" and each.name in partitions)}
    gone = [each.name for each in missing if each.kind in _RELATIONS]
    new = [*(each.name for each in added if each.kind in _RELATIONS), *partitions]
    drift = [_missing(each, expected[each]) for each in missing if not _is_part(each, expected[each], gone)]
    drift += [
        _changed(each, found[each], text) for each, text in expected.items() if each in found and found[each] != text
    ]
    made_by_constraints = {
        f"{each.name.split('.', 1)[0]}.{each.name.rsplit('.', 1)[1]}" for each in added if each.kind == "constraint"
    }
    names = {each.name for each in added if each.kind in {*_OWNED, "column"}}
    drift += [
        _added(each, found[each])
        for each in added
        if not _is_part(each, found[each], new)
        and not (each.kind == "index" and each.name in made_by_constraints)
        and not (each.kind == "owner" and each.name in names)
        and not (each.kind == "sequence" and _column_of(each, found[each]) in names)
    ]
    return sorted(drift, key=_rank)


def _rank(drift: Drift) -> tuple[int, str, str, str]:
    used = _USED_BY_OTHERS.index(drift.kind) + 1 if drift.kind in _USED_BY_OTHERS else 0
    return used, drift.kind, drift.name, drift.difference


def _column_of(sequence: Object, definition: str) -> str:
    """Return the name of the column that owns a sequence, with which it is dropped; of no column, an empty text."""
    _, _, column = definition.partition(", of ")
    return f"{sequence.name.split('.', 1)[0]}.{column}" if column else ""


def _is_part(each: Object, definition: str, relations: list[str]) -> bool:
    """Return whether an object belongs to one of the relations, and to no other one."""
    if each.kind in _RELATIONS:
        return False
    if (referenced := _REFERENCED.search(definition)) and each.kind == "constraint":
        return referenced[1] in relations  # otherwise it restricts changes of a table of the migrations
    return any(_belongs(each, definition, relation) for relation in relations)


def _belongs(each: Object, definition: str, relation: str) -> bool:
    schema, _, name = relation.rpartition(".")
    match each.kind:
        case "index":
            return f" ON {relation} " in definition or f" ON ONLY {relation} " in definition
        case "sequence":
            return each.name.startswith(f"{schema}.") and f", of {name}." in definition
        case "policy":
            return each.name.endswith(f" of {name}")
        case "inheritance":  # also a partition, which programs make
            return each.name.endswith(f" of {relation}") or definition != "inherits"
    return each.name == relation or each.name.startswith(f"{relation}.")


def _missing(each: Object, definition: str) -> Drift:
    if each.kind == "index":
        remedy = f"create it again: {definition.removesuffix(INVALID)}"
    elif each.kind == "constraint":
        relation, member = _relation_and_member(each.name)
        remedy = f"create it again: ALTER TABLE {relation} ADD CONSTRAINT {member} {definition}"
    else:
        remedy = f"create it again as its migration does ({_short(definition)}), or restore a backup"
    return Drift(
        difference="missing", kind=each.kind, name=each.name, detail="is missing", severity="error", remedy=remedy
    )


def _changed(each: Object, found: str, expected: str) -> Drift:
    return Drift(
        difference="changed",
        kind=each.kind,
        name=each.name,
        detail=describe_difference(found, expected),
        severity="error",
        remedy="change it back, or write a migration that makes the same change",
    )


def _added(each: Object, definition: str) -> Drift:
    return Drift(
        difference="added",
        kind=each.kind,
        name=each.name,
        detail=_short(definition),
        severity="error" if _changes_behaviour(each, definition) else "warning",
        remedy=_removal(each, definition),
    )


def _changes_behaviour(each: Object, definition: str) -> bool:
    if each.kind == "index":
        return definition.endswith(INVALID) or definition.startswith("CREATE UNIQUE")
    if each.kind == "column":
        return " not null" in definition and not re.search(" default | identity", definition)
    if each.kind == "cast":
        return not definition.endswith("explicit")
    if each.kind == "publication":
        return "without a replica identity" in definition
    return each.kind in _CHANGES_BEHAVIOUR


def _removal(each: Object, definition: str) -> str:
    if each.kind == "index" and definition.endswith(INVALID):
        return f"remove it, a build failed or still runs: DROP INDEX {_quoted(each.name)}"
    if each.kind == "policy":
        name, _, relation = each.name.partition(" of ")
        return f"remove it (SELECT remove_{name}_policy('{relation}')), or write a migration that makes it"
    if each.kind == "owner":
        alter = f"ALTER ROUTINE {_routine(each.name)}" if "(" in each.name else f"ALTER TABLE {_quoted(each.name)}"
        return (
            f"give it back to the role that owns the schema ({alter} OWNER TO …), or write a migration that does this"
        )
    if each.kind not in _DROP or (each.kind == "storage" and not _OPTIONS.fullmatch(definition)):
        return "remove it, or write a migration that makes it"
    statement = "DROP FOREIGN TABLE {name}" if definition == "foreign table" else _DROP[each.kind]
    if each.kind == "inheritance" and definition != "inherits":
        statement = "ALTER TABLE {parent} DETACH PARTITION {child}"
    return f"remove it ({_completed(statement, each, definition)}), or write a migration that makes it"


def _completed(statement: str, each: Object, definition: str) -> str:
    relation, member = _relation_and_member(each.name)
    child, _, parent = each.name.partition(" of ")
    return statement.format(
        full=each.name,
        name=_quoted(each.name),
        relation=relation,
        member=member,
        routine=_routine(each.name),
        child=_quoted(child),
        parent=parent,  # PostgreSQL has quoted it
        options=re.sub(r"=[^,]*", "", definition),
    )


def _routine(name: str) -> str:
    name, parenthesis, arguments = name.partition("(")
    return f"{_quoted(name)}{parenthesis}{arguments}"


def _relation_and_member(name: str) -> tuple[str, str]:
    relation, _, member = name.rpartition(".")
    return _quoted(relation), _quoted(member)


def _quoted(name: str) -> str:
    return ".".join(_quoted_parts(name))


def _quoted_parts(name: str) -> Iterator[str]:
    for part in name.split(".", 1):
        yield part if _PLAIN_NAME.fullmatch(part) else '"' + part.replace('"', '""') + '"'


def _short(definition: str) -> str:
    line = " ".join(definition.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
