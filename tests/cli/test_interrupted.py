"""An interrupted command says what it has changed."""

from __future__ import annotations

import json
import sys

import pytest

from observatory import cli, operations
from observatory.cli import main
from observatory.errors import INTERRUPTED


@pytest.mark.parametrize(
    ("arguments", "operation", "notes", "expected"),
    [
        ("status", "status", (), "interrupted; nothing was changed"),
        ("verify", "verify", (), "interrupted; nothing was changed"),
        ("up --yes", "up", (), "interrupted; what was brought up is kept; run the command again, it continues"),
        (
            "backup create",
            "create_backups",
            (),
            "interrupted; the backup that was being made was not finished; finished ones are kept",
        ),
        (
            "backup flashback --to-time 2026-11-29T13:30:00Z",
            "flash_back",
            (),
            "interrupted; missing rows are inserted all at once, or none; run the command again, it continues",
        ),
        (
            "deploy application --version v0.2.0 --strategy canary",
            "deploy_application",
            ("v0.2.0 was rolled back: blue has 100 % of the traffic",),
            "interrupted; v0.2.0 was rolled back: blue has 100 % of the traffic",
        ),
    ],
)
def test_an_interrupted_command(
    *,
    arguments: str,
    operation: str,
    notes: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        error = KeyboardInterrupt()
        for note in notes:
            error.add_note(note)
        raise error

    monkeypatch.setattr(operations, operation, interrupt)
    monkeypatch.setattr(sys, "argv", ["observatory", *arguments.split(), "--output", "json"])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == INTERRUPTED
    assert printed.err.splitlines()[-1] == f"error: {expected}"
    assert json.loads(printed.out)["error"]["message"] == expected


def test_an_interrupt_before_the_command_runs_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(cli, "app", interrupt)
    monkeypatch.setattr(sys, "argv", ["observatory", "status"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().err) == (INTERRUPTED, "error: interrupted; nothing was changed\n")
