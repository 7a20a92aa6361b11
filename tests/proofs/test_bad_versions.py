"""The catalogue of bad versions, and how the end of a deployment is read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from observatory.documents.journal import Entry
from proofs.judged import Judgement, gates_of
from proofs.versions import Found
from tests.support.bad_versions import BAD_VERSIONS, GATES, INSTALLATION
from tests.support.faulty import data
from tests.support.faulty.exchange import Exchange
from tests.support.faulty.launch import FAULTS


def entry(event: str, **details: Any) -> Entry:
    return Entry(id="1", at=1.0, actor="a", event=event, details=details)


FINDINGS = [{"kind": "client errors", "decision": "failed"}, {"kind": "errors", "decision": "unknown"}]
FAILED = entry("gate", verdict="failed", findings=FINDINGS)
GOOD = {"good", "slow-start", "one-error"}
OF_ONE_PROBE = {"losing-once", "omitting-once"}  # as in the catalogue at random


def test_every_fault_is_in_the_catalogue_once_and_names_what_should_find_it() -> None:
    listed = [version.fault for version in BAD_VERSIONS]
    assert len(listed) == len(set(listed)) >= 30
    assert set(listed) == FAULTS.keys() - GOOD - OF_ONE_PROBE
    assert all(set(version.found_by) <= set(GATES) for version in BAD_VERSIONS)


def test_the_losing_version_answers_201_for_rows_that_it_does_not_pass_on() -> None:
    passed_on, answers = [], []

    async def service(_scope: Any, receive: Any, send: Any) -> None:
        passed_on.extend(json.loads((await receive())["body"])["items"])
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b'{"accepted": 1}'})

    async def sent(message: Any) -> None:
        answers.append(message)

    async def body() -> Any:
        return {"type": "http.request", "body": b'{"items": [{"span_id": "1"}]}', "more_body": False}

    async def write_all() -> None:
        losing = data.Losing(service)
        for _ in range(1000):
            scope = {"path": "/v1/traces", "method": "POST", "headers": []}
            await losing.handle(Exchange(service, scope, body, sent))

    asyncio.run(write_all())
    starts = [each["status"] for each in answers if each["type"] == "http.response.start"]
    assert starts == [201] * 1000
    assert 950 <= len(passed_on) < 990


@pytest.mark.parametrize(
    ("status", "gates", "hurt", "problem"),
    [
        ("refused", ("trial",), 0, ""),
        ("promoted", (), 0, "promoted"),
        ("undecided", (), 0, "undecided"),
        ("rolled-back", ("errors", "probes"), 0, "found by errors, probes, not by trial"),
        ("rolled-back", (), 0, "found by no gate, not by trial"),
        ("refused", ("trial",), 9, "9.0% of the requests hurt, the version had 0%"),
    ],
)
def test_a_bad_version_is_judged_by_its_end(status: str, gates: tuple[str, ...], hurt: int, problem: str) -> None:
    version = next(each for each in BAD_VERSIONS if each.fault == "never-stored")
    end = Judgement(status=status, said="", seconds=1.0, gates=gates, hurt=hurt, requests=100)
    assert Found(version=version, judgement=end).problem == problem


def test_the_installation_may_find_a_fault_that_begins_late_and_no_other() -> None:
    end = Judgement(status="rolled-back", said="", seconds=1.0, gates=(INSTALLATION,))
    problems = {each.fault: Found(version=each, judgement=end).problem for each in BAD_VERSIONS}
    assert problems["half-refused-late"] == ""
    assert problems["never-stored"] == "found by installation, not by trial"


@pytest.mark.parametrize(
    ("events", "said", "gates"),
    [
        (["tests-failed"], "v0.1.1 failed its pre-deployment tests", ("trial",)),
        (["start", "install"], "rolled back: it did not start", ("installation",)),
        (["start", "shift", FAILED], "rolled back: 404 of GET /v1/traces", ("client errors",)),
        (["start", "shift"], "rolled back: the new version has no metric of saturation", ("metrics",)),
        (["start", "shift"], "interrupted", ()),
    ],
)
def test_what_found_a_version_is_in_its_journal(events: list[Any], said: str, gates: tuple[str, ...]) -> None:
    noted = [each if isinstance(each, Entry) else entry(each) for each in events]
    assert gates_of(noted, said) == gates
