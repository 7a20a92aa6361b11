"""Receipts of restore drills: who can make one, which ones permit a migration, and the metrics that they give."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from observatory.backups import receipts
from observatory.backups.receipts import (
    DIRECTORY,
    DrillCheck,
    DrillRequirement,
    Receipt,
    ReceiptStore,
    metrics,
    publish_drills,
)
from observatory.database.errors import DrillRequiredError
from observatory.runtime import Sandbox
from observatory.security.signatures import RECEIPT, RELEASE, make_private_key, sign

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def receipt(**fields: Any) -> Receipt:
    ended = fields.pop("finished", NOW - DAY)
    facts: dict[str, Any] = {
        "stack": "local",
        "system": "7",
        "started": ended - timedelta(minutes=1),
        "finished": ended,
        "target": "latest",
        "proves": ended,
        "repository": 1,
        "rto_seconds": 12.5,
        "rpo_seconds": 0,
        "checks": (DrillCheck(name="values", result="passed", detail="all rows"),),
        "result": "passed",
    }
    return Receipt(**{**facts, **fields})


FAILED = {"checks": (DrillCheck(name="pages", result="failed", detail="block 3 is damaged"),), "result": "failed"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReceiptStore:
    monkeypatch.setattr(receipts, "system_identifier", lambda _sandbox: "7")
    (tmp_path / "key.pem").write_text(make_private_key())
    return ReceiptStore(sandbox=Sandbox(tmp_path / "home", tmp_path), key_file=tmp_path / "key.pem")


def requirement(store: ReceiptStore, days: int = 7) -> DrillRequirement:
    return DrillRequirement(days=days, stack="local", key_file=store.key_file)


def test_a_signed_receipt_is_read_as_it_was_written_and_is_private(store: ReceiptStore) -> None:
    file = store.add(receipt(last_transaction=NOW, lsn="0/3000060"))
    assert store.all() == [receipt(last_transaction=NOW, lsn="0/3000060")]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_changed_receipt_counts_as_none(store: ReceiptStore) -> None:
    file = store.add(receipt(**FAILED))
    document = json.loads(file.read_text())
    document["receipt"]["result"] = "passed"
    file.write_text(json.dumps(document))
    assert store.all() == []


@pytest.mark.parametrize("forge", ["another key", "another kind", "no signature", "no JSON"])
def test_a_receipt_that_the_stack_s_key_did_not_sign_permits_nothing(store: ReceiptStore, forge: str) -> None:
    forged = receipt(finished=datetime.now(UTC) - DAY)
    key = make_private_key() if forge == "another key" else store.key_file.read_text()
    signature = sign(forged.payload, key, kind=RELEASE if forge == "another kind" else RECEIPT)
    document = {"receipt": forged.model_dump(mode="json"), "signature": signature.model_dump()}
    if forge == "no signature":
        del document["signature"]
    text = "{" if forge == "no JSON" else json.dumps(document)
    store.sandbox.write_file(f"{DIRECTORY}/forged.json", text)

    with pytest.raises(DrillRequiredError, match="no restore drill of this database has ended"):
        requirement(store).check(store.sandbox)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ([], "no restore drill of this database"),
        ([receipt(finished=NOW - 8 * DAY)], "proves a state that is 8 days old"),
        ([receipt(finished=NOW + DAY)], "no restore drill of this database"),
        ([receipt(proves=NOW - 30 * DAY)], "proves a state that is 30 days old"),
        ([receipt(stack="other")], "no restore drill of this database"),
        ([receipt(system="8")], "no restore drill of this database"),
        ([receipt(**FAILED)], r"the restore drill of 2026-11-28 12:00 UTC failed \(pages: block 3 is damaged\)"),
        ([receipt(finished=NOW - 2 * DAY), receipt(**FAILED)], "failed"),
    ],
    ids=["none", "old", "of the future", "old state", "other stack", "other database", "failed", "failed since"],
)
def test_without_a_young_passed_receipt_migrations_are_refused_with_the_way_out(
    store: ReceiptStore, made: list[Receipt], reason: str
) -> None:
    for each in made:
        store.add(each)
    with pytest.raises(DrillRequiredError, match=reason) as raised:
        requirement(store).check(store.sandbox, now=NOW)
    assert "not older than 7 days (backups.require_drill_days)" in str(raised.value)
    assert raised.value.remedy.startswith("Run `observatory backup restore-test`")
    assert raised.value.exit_code == 3
    requirement(store, days=0).check(store.sandbox, now=NOW)


def test_a_young_passed_receipt_of_one_repository_permits_migrations(store: ReceiptStore) -> None:
    store.add(receipt(finished=NOW - 6 * DAY, repository=2))
    store.add(receipt(**FAILED))
    requirement(store).check(store.sandbox, now=NOW)


def test_a_stack_without_a_key_has_no_receipts(store: ReceiptStore) -> None:
    store.add(receipt())
    store.key_file.unlink()
    assert store.all() == []


def test_old_receipts_are_removed(store: ReceiptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "KEPT", 2)
    for day in (3, 2, 1):
        store.add(receipt(finished=NOW - day * DAY))
    assert [each.finished for each in store.all()] == [NOW - 2 * DAY, NOW - DAY]


def test_metrics_have_age_and_result(store: ReceiptStore) -> None:
    store.add(receipt(finished=NOW - 3 * DAY, repository=2, rto_seconds=None))
    store.add(receipt(finished=NOW - 2 * DAY))
    store.add(receipt(**FAILED))
    store.add(receipt(stack="other", finished=NOW))
    store.add(receipt(finished=NOW + 300 * DAY))  # the clock was ahead

    publish_drills(store, stack="local", expected_since=NOW - 9 * DAY, now=NOW)

    text = store.sandbox.host_path(receipts.METRICS_FILE).read_text()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples == {
        "observatory_restore_drill_proven_timestamp_seconds": f"{(NOW - 2 * DAY).timestamp():.3f}",
        "observatory_restore_drill_failed": "1.000",
        "observatory_restore_drill_last_timestamp_seconds": f"{(NOW - DAY).timestamp():.3f}",
        'observatory_restore_drill_repository_proven_timestamp_seconds{repository="1"}': (
            f"{(NOW - 2 * DAY).timestamp():.3f}"
        ),
        'observatory_restore_drill_repository_proven_timestamp_seconds{repository="2"}': (
            f"{(NOW - 3 * DAY).timestamp():.3f}"
        ),
        'observatory_restore_drill_rto_seconds{repository="1"}': "12.500",
        'observatory_restore_drill_rpo_seconds{repository="1"}': "0.000",
        'observatory_restore_drill_rpo_seconds{repository="2"}': "0.000",
    }


def test_before_the_first_drill_its_age_is_that_of_the_expectation() -> None:
    text = metrics([], expected_since=NOW)
    assert f"observatory_restore_drill_proven_timestamp_seconds {NOW.timestamp():.3f}\n" in text
    assert "observatory_restore_drill_failed 0.000\n" in text
