"""How a plan looks: a tree of what changes, whole, masked and within the terminal's width."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from observatory.cli.plan import plan_json, plan_view
from observatory.engines.embedded import PropertyChange, Result, Step, differences
from observatory.operations import PendingMigration, Plan

STACK = "urn:pulumi:local::p::pulumi:pulumi:Stack::p-local"
DATABASE = "urn:pulumi:local::p::observatory:local:Database::database"
SCHEMA = "pulumi-python:dynamic/database:Schema"
SQL = "-- indexes\nCREATE INDEX a ON llm_traces (provider);\n"


def step(name: str, operation: Any, *, type_: str = "aws:ec2/subnet:Subnet", parent: str = STACK, **more: Any) -> Step:
    return Step(operation=operation, urn=f"urn:pulumi:local::p::{type_}::{name}", type=type_, parent=parent, **more)


def changes(old: Any, new: Any) -> tuple[PropertyChange, ...]:
    return tuple(differences(old, new))


def shown(*steps: Step, width: int = 80, full: bool = False, **plan: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    given = Plan(engine="embedded", offline=False, result=Result(steps=steps), **plan)
    console.print(plan_view(given, full=full))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


ROOT = Step(operation="same", urn=STACK, type="pulumi:pulumi:Stack")
COMPONENT = Step(operation="same", urn=DATABASE, type="observatory:local:Database", parent=STACK)


def test_what_stays_the_same_is_left_out_but_for_the_components_around_what_does_not() -> None:
    told = shown(step("b", "update", parent=DATABASE), step("a", "same"), COMPONENT, ROOT)
    assert [line.rstrip() for line in told.splitlines()][:3] == [
        "p-local  pulumi:pulumi:Stack",
        "  database  observatory:local:Database",
        "    ~ update b  aws:ec2:Subnet",
    ]
    assert told.count("Subnet") == 1


def test_nothing_to_do_shows_nothing() -> None:
    assert shown(step("a", "same"), ROOT).strip() == ""


def test_each_property_is_shown_with_its_old_and_new_value() -> None:
    told = shown(step("a", "update", changes=changes({"size": 1, "gone": True}, {"size": 2, "new": ["x"]})))
    assert "~ size: 1 → 2" in told
    assert "- gone: true" in told
    assert '+ new: ["x"]' in told


def test_a_replacement_is_one_entry_that_names_what_forces_it() -> None:
    replaced = step("a", "replace", changes=changes({"zone": "a", "x": 1}, {"zone": "b", "x": 2}), replaces=("zone",))
    told = shown(step("a", "create-replacement"), replaced, step("a", "delete-replaced"))
    assert told.count("Subnet") == 1
    assert "~ zone: a → b (forces replacement)" in told
    assert "~ x: 1 → 2\n" in told


def test_a_replacement_for_another_reason_names_that() -> None:
    assert "replaced because of: provider" in shown(step("a", "replace", replaces=("provider",)))


def test_a_long_text_is_a_line_diff_that_says_what_it_leaves_out() -> None:
    old = "\n".join(f"line {number}" for number in range(40))
    told = shown(step("a", "update", changes=changes({"text": old}, {"text": old.replace("line 20", "other")})))
    assert "- line 20\n" in told
    assert "+ other\n" in told
    assert "… 18 unchanged lines" in told
    assert "… 17 unchanged lines" in told


def test_a_policy_in_one_line_is_compared_by_its_parts() -> None:
    old, new = (json.dumps({"Statement": [{"Action": action, "Effect": "Allow"}]}) for action in ("a:Get", "a:Put"))
    told = shown(step("a", "update", changes=changes({"policy": old}, {"policy": new})))
    assert '-       "Action": "a:Get",' in told
    assert '+       "Action": "a:Put",' in told
    assert told.count("Effect") == 1


def test_long_texts_of_a_new_resource_are_counted_or_spelt_out() -> None:
    new = step("a", "create", changes=changes({}, {"files": {"/etc/x.conf": "one\ntwo\n"}}))
    assert "/etc/x.conf: 2 lines (--full shows them)" in shown(new)
    assert [line.strip() for line in shown(new, full=True).splitlines()][2:] == ["/etc/x.conf:", "one", "two"]


def test_a_changed_secret_is_told_and_not_shown() -> None:
    secret = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
    told = shown(
        step("a", "update", changes=changes({"key": {**secret, "value": "x"}}, {"key": {**secret, "value": "y"}}))
    )
    assert "~ key: [secret] changed" in told


def test_an_update_without_a_difference_says_why() -> None:
    assert "the provider found a difference in the real resource" in shown(step("a", "update"), width=200)


def test_the_code_of_a_dynamic_provider_is_never_printed() -> None:
    told = shown(step("a", "create", changes=changes({}, {"__provider": "gASV", "x": 1})))
    told += shown(step("a", "update", changes=changes({"__provider": "gASV"}, {"__provider": "gASW"})))
    assert "gAS" not in told
    assert "code of the dynamic provider" in told


@pytest.mark.parametrize(
    ("operation", "full", "whole"), [("update", False, True), ("create", False, False), ("create", True, True)]
)
def test_pending_sql_stands_under_the_schema(operation: Any, full: bool, whole: bool) -> None:
    pending = (PendingMigration(file="003_create_indexes.sql", sql=SQL),)
    told = shown(step("schema", operation, type_=SCHEMA), full=full, migrations=pending)
    assert "003_create_indexes.sql: " + ("2 lines" if not whole else "") in told.replace(":\n", ": \n")
    assert ("CREATE INDEX a ON llm_traces (provider);" in told) is whole


def test_eighty_columns_hold_any_text_and_lose_none_of_it() -> None:
    value = "arn:aws:iam::444455556666:role/" + "x" * 150
    told = shown(step("a", "create", parent=DATABASE, changes=changes({}, {"role": value})), COMPONENT, ROOT)
    assert max(map(len, told.splitlines())) <= 80
    assert value in "".join(line.strip() for line in told.splitlines())


def test_json_has_every_step_with_its_differences_and_the_pending_sql() -> None:
    pending = (PendingMigration(file="005_x.apache.sql", sql=SQL, edition="apache"),)
    update = step(
        "schema", "update", type_=SCHEMA, changes=changes({"n": 1, "__provider": "a"}, {"n": 2, "__provider": "b"})
    )
    result = Result(steps=(ROOT, update), duration=1.23456)
    document = plan_json(Plan(engine="cli", offline=True, result=result, notes=("n",), migrations=pending))
    assert document == {
        "engine": "cli",
        "offline": True,
        "notes": ["n"],
        "steps": [
            {
                "urn": STACK,
                "type": "pulumi:pulumi:Stack",
                "name": "p-local",
                "parent": "",
                "operation": "same",
                "changes": [],
                "replaces": [],
            },
            {
                "urn": update.urn,
                "type": SCHEMA,
                "name": "schema",
                "parent": STACK,
                "operation": "update",
                "changes": [{"path": "n", "kind": "update", "old": 1, "new": 2}],
                "replaces": [],
                "pending_migrations": [{"file": "005_x.apache.sql", "edition": "apache", "sql": SQL}],
            },
        ],
        "summary": {"same": 1, "update": 1},
        "outputs": {},
        "duration": 1.235,
    }
