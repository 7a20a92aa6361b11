"""The access document: its active logins, and the steps of a rotation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from observatory.documents.login_limits import limits_of
from observatory.documents.logins import PAIRED_ROLES, AccessDocument, AccessError, AccessStore

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=100)
FIRST = AccessDocument.first(NOW)


def test_a_rotation_renews_one_login_after_the_other() -> None:
    switched = FIRST.app.switched(LATER)
    assert (switched.active, switched.retiring) == ("b", True)
    assert (switched.a.generation, switched.b.generation) == (1, 2)
    retired = switched.retired(LATER)
    assert (retired.active, retired.retiring) == ("b", False)
    assert (retired.a.generation, retired.b.generation) == (2, 2)
    assert retired.switched(LATER).active == "a"


def test_the_age_is_that_of_the_active_login() -> None:
    document = FIRST.with_pair("app", FIRST.app.switched(LATER))
    assert document.ages(LATER) == {"app": timedelta(0), "readonly": LATER - NOW, "admin": LATER - NOW}
    assert document.active_login("app") == "app_b"
    assert len(list(document.logins())) == 2 * len(PAIRED_ROLES)


def test_the_document_is_created_once(tmp_path: Path) -> None:
    store = AccessStore(tmp_path / "access/local.json")
    assert store.read() is None
    assert store.create(FIRST) == FIRST
    assert store.create(AccessDocument.first(LATER)) == FIRST
    switched = FIRST.with_pair("app", FIRST.app.switched(LATER))
    assert store.compare_and_set(FIRST, switched) == switched
    assert store.read() == switched
    store.remove()
    assert store.read() is None


def test_a_concurrent_change_is_refused(tmp_path: Path) -> None:
    store = AccessStore(tmp_path / "local.json")
    store.create(FIRST)
    switched = store.compare_and_set(FIRST, FIRST.with_pair("app", FIRST.app.switched(LATER)))
    with pytest.raises(AccessError, match=r"local\.json: the access document changed concurrently; run the command"):
        store.compare_and_set(FIRST, FIRST.with_pair("admin", FIRST.admin.switched(LATER)))
    assert store.read() == switched


@pytest.mark.parametrize("text", ["", "{}", '{"app": 1}', FIRST.model_dump_json().replace('"a"', '"c"')])
def test_the_error_of_a_damaged_document_names_file_and_remedy(tmp_path: Path, text: str) -> None:
    (tmp_path / "local.json").write_text(text)
    with pytest.raises(AccessError, match=r"local\.json: not an access document \(.*remove it"):
        AccessStore(tmp_path / "local.json").read()


def test_the_services_login_may_use_the_poolers_connections_and_a_reserve() -> None:
    assert limits_of("app", pool_size=20).connections == 25
    assert limits_of("app", pool_size=20).settings["statement_timeout"] == 30_000
