"""Targets of a restore as text."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from observatory.backups.target import InvalidTargetError, RecoveryTarget
from observatory.cli.database_rollback import DatabaseOptions
from observatory.errors import WRONG_USAGE

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29T12:00:00Z",
        "2026-11-29 12:00:00 UTC",
        "2026-11-29T14:00:00.000000+02:00",
        "2026-11-29 07:00:00-05",
        " 2026-11-29T12:00:00z ",
    ],
)
def test_a_time_with_a_zone_is_read(text: str) -> None:
    assert RecoveryTarget.parse(text) == RecoveryTarget.at_time(NOON)


def test_other_targets_are_read() -> None:
    assert RecoveryTarget.parse("latest") == RecoveryTarget.latest()
    assert RecoveryTarget.parse("A/3000060") == RecoveryTarget.at_lsn(0xA_0300_0060)
    label = "20261129-002853F_20261129-010203I"
    assert RecoveryTarget.parse(label) == RecoveryTarget.of_backup(label)


@pytest.mark.parametrize("text", ["latest", "2026-11-29T12:00:00.000001Z", "A/3000060", "20261129-002853F"])
def test_a_target_prints_as_it_is_read(text: str) -> None:
    assert str(RecoveryTarget.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-29T12:00:00",
        "2026-11-29",
        "yesterday",
        "",
        "1795912134",
        "2026-02-30T12:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        "0/",
        "123456789/0",
        "20261129-002853",
        "; DROP TABLE",
    ],
)
def test_other_text_is_refused_with_examples(text: str) -> None:
    with pytest.raises(InvalidTargetError, match="2026-11-29T13:30:00Z") as caught:
        RecoveryTarget.parse(text)
    assert caught.value.exit_code == WRONG_USAGE


def test_only_a_time_is_proposed_where_nothing_else_is_accepted() -> None:
    with pytest.raises(InvalidTargetError) as caught:
        DatabaseOptions(to_time="latest", backup_file=None, undo=False).target  # noqa: B018 - raises
    assert "2026-11-29T13:30:00Z" in caught.value.remedy
    assert "`latest`" not in caught.value.remedy
