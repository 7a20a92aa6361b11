"""A stack apart from its runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from observatory.engines import embedded as engine
from tests.engines.embedded.lab import TWO, Lab


def test_init_creates_a_stack_once(lab: Lab) -> None:
    engine.init(lab.options)
    first = lab.checkpoint.read_text()
    engine.init(lab.options)
    assert lab.checkpoint.read_text() == first
    assert lab.names() == []


@pytest.mark.cli
def test_the_cli_finds_a_stack_from_init(lab: Lab) -> None:
    engine.init(lab.options)
    lab.program(TWO)
    assert lab.cli("preview").steps == ["create a", "create b", "create lab-dev"]


def test_remove_leaves_no_file_of_the_stack(lab: Lab) -> None:
    lab.program(TWO)
    lab.embedded("up")
    engine.remove(lab.options)
    assert [path for path in lab.backend.rglob("*") if path.is_file() and path.name != "meta.yaml"] == []


def test_resources_are_read_from_the_state(lab: Lab) -> None:
    lab.program('Thing("a", Options(protect=True), key=Output.secret("hush-hush"))')
    lab.embedded("up")
    (record,) = [record for record in engine.resources(lab.options) if record.name == "a"]
    assert record.protect
    assert record.outputs["key"] == "[secret]"
    assert "__provider" not in record.outputs
    [shown] = [record for record in engine.resources(lab.options, show_secrets=True) if record.name == "a"]
    assert shown == replace(record, outputs={**record.outputs, "key": "hush-hush"})
