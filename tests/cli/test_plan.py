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


def test_unchanged_resources_are_omitted_except_parents_of_changed_ones() -> None:
    output = shown(step("b", "update", parent=DATABASE), step("a", "same"), COMPONENT, ROOT)
    assert [line.rstrip() for line in output.splitlines()][:3] == [
        "p-local  pulumi:pulumi:Stack",
        "  database  observatory:local:Database",
        "    ~ update b  aws:ec2:Subnet",
    ]
    assert output.count("Subnet") == 1


def test_a_plan_without_changes_is_empty() -> None:
    assert shown(step("a", "same"), ROOT).strip() == ""


def test_each_property_is_shown_with_its_old_and_new_value() -> None:
    output = shown(step("a", "update", changes=changes({"size": 1, "gone": True}, {"size": 2, "new": ["x"]})))
    assert "~ size: 1 → 2" in output
    assert "- gone: true" in output
    assert '+ new: ["x"]' in output


def test_a_replacement_is_one_entry_that_names_what_forces_it() -> None:
    replaced = step("a", "replace", changes=changes({"zone": "a", "x": 1}, {"zone": "b", "x": 2}), replaces=("zone",))
    output = shown(step("a", "create-replacement"), replaced, step("a", "delete-replaced"))
    assert output.count("Subnet") == 1
    assert "~ zone: a → b (forces replacement)" in output
    assert "~ x: 1 → 2\n" in output


def test_a_replacement_for_another_reason_names_that() -> None:
    assert "replaced because of: provider" in shown(step("a", "replace", replaces=("provider",)))


def test_a_long_text_is_a_line_diff_with_the_number_of_omitted_lines() -> None:
    old = "\n".join(f"line {number}" for number in range(40))
    output = shown(step("a", "update", changes=changes({"text": old}, {"text": old.replace("line 20", "other")})))
    assert "- line 20\n" in output
    assert "+ other\n" in output
    assert "… 18 unchanged lines" in output
    assert "… 17 unchanged lines" in output


def test_a_policy_in_one_line_is_compared_by_its_parts() -> None:
    old, new = (json.dumps({"Statement": [{"Action": action, "Effect": "Allow"}]}) for action in ("a:Get", "a:Put"))
    output = shown(step("a", "update", changes=changes({"policy": old}, {"policy": new})))
    assert '-       "Action": "a:Get",' in output
    assert '+       "Action": "a:Put",' in output
    assert output.count("Effect") == 1


def test_long_texts_of_a_new_resource_are_counted_or_shown_in_full() -> None:
    new = step("a", "create", changes=changes({}, {"files": {"/etc/x.conf": "one\ntwo\n"}}))
    assert "/etc/x.conf: 2 lines (--full shows them)" in shown(new)
    assert [line.strip() for line in shown(new, full=True).splitlines()][2:] == ["/etc/x.conf:", "one", "two"]


def test_a_changed_secret_is_reported_but_not_shown() -> None:
    secret = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
    output = shown(
        step("a", "update", changes=changes({"key": {**secret, "value": "x"}}, {"key": {**secret, "value": "y"}}))
    )
    assert "~ key: [secret] changed" in output


def test_an_update_without_a_difference_is_explained() -> None:
    assert "the provider found a difference in the real resource" in shown(step("a", "update"), width=200)


def test_the_code_of_a_dynamic_provider_is_never_printed() -> None:
    output = shown(step("a", "create", changes=changes({}, {"__provider": "gASV", "x": 1})))
    output += shown(step("a", "update", changes=changes({"__provider": "gASV"}, {"__provider": "gASW"})))
    assert "gAS" not in output
    assert "code of the dynamic provider" in output


@pytest.mark.parametrize(
    ("operation", "full", "whole"), [("update", False, True), ("create", False, False), ("create", True, True)]
)
def test_pending_sql_is_listed_below_the_schema(operation: Any, full: bool, whole: bool) -> None:
    pending = (PendingMigration(file="003_create_indexes.sql", sql=SQL),)
    output = shown(step("schema", operation, type_=SCHEMA), full=full, migrations=pending)
    assert "003_create_indexes.sql: " + ("2 lines" if not whole else "") in output.replace(":\n", ": \n")
    assert ("CREATE INDEX a ON llm_traces (provider);" in output) is whole


def test_any_text_is_wrapped_at_eighty_columns_without_loss() -> None:
    value = "arn:aws:iam::444455556666:role/" + "x" * 150
    output = shown(step("a", "create", parent=DATABASE, changes=changes({}, {"role": value})), COMPONENT, ROOT)
    assert max(map(len, output.splitlines())) <= 80
    assert value in "".join(line.strip() for line in output.splitlines())


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
