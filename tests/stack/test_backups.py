"""Backups on a real stack, by the command."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from components.local.backups import StanzaProvider
from observatory.backups.pgbackrest import BackupError, BackupType, create_backup
from observatory.files.locks import exclusive
from tests.stack.test_monitoring import sandbox
from tests.support.checkout import Checkout


def test_each_backup_type_has_its_base(stack: Checkout) -> None:
    first = stack.json("backup", "list")[0]
    assert first["type"] == "full"
    differential = stack.json("backup", "create", "--type", "differential")
    incremental = stack.json("backup", "create")
    assert (differential["type"], incremental["type"]) == ("differential", "incremental")
    assert incremental["prior"] == differential["label"]
    labels = [backup["label"] for backup in stack.json("backup", "list")]
    assert labels[-2:] == [differential["label"], incremental["label"]]
    assert differential["prior"] in labels
    assert incremental["repository_bytes"] < first["repository_bytes"]
    assert not any(backup["damaged"] for backup in stack.json("backup", "list"))


def test_a_second_backup_at_once_is_refused(stack: Checkout) -> None:
    """pgBackRest's own lock is held here, as a backup at work holds it."""
    with exclusive(stack.home / "run/pgbackrest/observatory-backup-1.lock"):
        refused = stack.json("backup", "create", expect=3)
    assert "another backup is running" in refused["error"]["message"]
    assert stack.json("backup", "create")["type"] == "incremental"


def test_the_stanza_waits_for_the_backup_that_a_killed_up_began(stack: Checkout) -> None:
    props = {"home": str(stack.home), "rootfs": stack.environment["OBSERVATORY_ROOTFS"]}
    with ThreadPoolExecutor() as pool:
        with exclusive(stack.home / "run/pgbackrest/observatory-backup-1.lock"):
            made = pool.submit(StanzaProvider().create, props)
            with pytest.raises(TimeoutError):
                made.result(timeout=2)
        assert made.result(timeout=60).id == "observatory"


def test_a_backup_past_its_timeout_is_stopped_and_reported(stack: Checkout) -> None:
    before = stack.json("backup", "list")
    with pytest.raises(BackupError, match=r"pgbackrest backup did not finish within 0\.1 s and was stopped"):
        create_backup(sandbox(stack), BackupType.FULL, timeout=0.1)
    assert stack.json("backup", "list") == before
    assert stack.json("backup", "create")["type"] == "incremental"


def test_a_backup_of_a_stack_that_is_not_up_is_refused(checkout: Checkout) -> None:
    assert "`observatory up`" in checkout.run("backup", "create", expect=2).stderr
    assert "does not exist" in checkout.run("backup", "list", expect=2).stderr
