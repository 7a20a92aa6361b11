"""Progress on stderr: evaluations differ in sign, word and colour; a log has one line for each event, with its time."""

from __future__ import annotations

import re
import sys

import pytest

from observatory.cli.terminal import ConsoleReporter
from observatory.documents.event_text import event_phase, event_text
from observatory.progress import Phase, Progress

VERDICTS = {"passed": ("✓", "32"), "failed": ("✗", "31"), "unknown": ("?", "33")}  # sign and colour
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?P<mark>\S) (?P<text>.+)")


def evaluation(verdict: str) -> Progress:
    details = {"verdict": verdict, "step": 1, "steps": 2, "weights": {"blue": 80, "green": 20}}
    return Progress(task=event_text("gate", details), phase=event_phase("gate", details))


def test_a_log_has_one_line_with_its_time_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter() as report:
        report(Progress(task="up", phase=Phase.STARTED))
        report(Progress(task="up", phase=Phase.MOVED, detail="a step"))
        for verdict in VERDICTS:
            report(evaluation(verdict))
        report(Progress(task="up", phase=Phase.DONE, seconds=2.0))
    found = [LINE.fullmatch(line) for line in capsys.readouterr().err.splitlines()]
    text = "gate {}: step 1 of 2 (blue 80 %, green 20 %)"
    assert [(line["mark"], line["text"]) for line in found if line] == [
        ("…", "up"),
        *((mark, text.format(verdict)) for verdict, (mark, _) in VERDICTS.items()),
        ("✓", "up 2.0 s"),
    ]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_on_a_terminal_verdicts_differ_in_colour(
    verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ConsoleReporter() as report:
        report(evaluation(verdict))
    mark, colour = VERDICTS[verdict]
    assert f"\x1b[{colour}m{mark}\x1b[0m" in capsys.readouterr().err
