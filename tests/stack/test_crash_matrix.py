"""Commands that die or are interrupted in the middle of a real stack: the next one goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from observatory.database.connection import connect, with_database
from observatory.engines import embedded as engine
from observatory.runtime import Sandbox
from tests.support import crash
from tests.support.blow import read_ledger, write_plan
from tests.support.checkout import Checkout
from tests.support.life import DOWN, EMBEDDED, KEEP, UP, Life

SHARE, SEED = 29, 3  # which strike up, the change, the stopped stack's up and down one to three times each


def traces(checkout: Checkout) -> int:
    url = with_database(checkout.output("admin_database_url"), "observatory")
    with connect(url, purpose="test") as connection:
        row = connection.execute("SELECT count(*) FROM llm_traces").fetchone()
    return int(row[0]) if row else 0


def strike_once(checkout: Checkout, arguments: tuple[str, ...], moment: str, step: str, signal: str) -> str:
    """Strike the command at one moment; return what it output."""
    plan = crash.plan_for(checkout, moment, signal=signal, moments=(moment,), only=step)
    file = Path(plan.ledger).with_suffix(".plan")
    write_plan(file, plan)
    before = len(read_ledger(Path(plan.ledger)))
    _, output = crash.strike(checkout, arguments, file)
    assert len(read_ledger(Path(plan.ledger))) > before, f"never came to {step}:\n{output}"
    assert crash.after_a_blow(checkout, file) == []
    return output


def daemons(checkout: Checkout) -> dict[str, int | None]:
    """Return the process of each daemon."""
    sandbox = Sandbox(checkout.home, Path(checkout.environment["OBSERVATORY_ROOTFS"]))
    return {each.name: each.pid for each in sandbox.supervisor.statuses()}


STATE_GOES = r"os.remove backend/.*stacks/.*/local\.json$"
GIVEN_UP = r"os.rename stacks/\.local\.removed"


def test_killed_downs_are_finished_by_the_next(checkout: Checkout) -> None:
    """Each continues what the one before began, and is killed at a later step; the last one is not."""
    checkout.run("bootstrap")
    (checkout.home / "data").mkdir(parents=True)
    (checkout.home / "data/some").write_text("data")
    for step in (GIVEN_UP, STATE_GOES, "rmtree backend/", "os.remove rollout/local.json", "rmtree stacks/"):
        strike_once(checkout, DOWN, "unsaved", step, "SIGKILL")
    checkout.run(*DOWN)
    assert not any((checkout.root / ".observatory/stacks").iterdir())
    assert not crash.checkpoint(checkout).exists()


@pytest.mark.timeout(3600)  # a busy machine takes five times as long
def test_a_stack_survives_commands_that_are_killed_anywhere(checkout: Checkout) -> None:
    """A part of the steps, each at one moment and by one signal; `make prove` strikes every step, moment and signal."""
    the_next_up_reports_what_a_killed_up_left(checkout)
    checkout.configure(database={"shared_buffers_mb": 96, "max_connections": 50})
    life = Life(checkout=checkout, signals=("SIGKILL", "SIGINT"), share=SHARE, seed=SEED)
    life.begin()
    it_applies_the_current_settings(checkout)
    life.grow()
    assert not life.broken, "\n".join(life.broken)
    a_down_without_a_state_removes_nothing(checkout)
    an_interrupted_down_is_undone_or_finished_by_up(checkout)
    life.end()
    assert not life.broken, "\n".join(life.broken)
    assert all(life.blows[name] for name in ("up", "change", "keep", "down")), life.blows


def the_next_up_reports_what_a_killed_up_left(checkout: Checkout) -> None:
    strike_once(checkout, UP, "begun", "creating Machine machine", "SIGKILL")
    [lock] = (checkout.root / ".observatory/backend/.pulumi/locks").rglob("*.json")
    pid = json.loads(lock.read_text())["pid"]
    output = strike_once(checkout, UP, "unsaved", "creating Daemon patroni", "SIGKILL")
    assert f"(pid {pid})" in output
    assert "machine: an earlier run was interrupted while creating it" in output


def it_applies_the_current_settings(checkout: Checkout) -> None:
    with connect(checkout.output("admin_database_url"), purpose="test") as connection:
        for name, wanted in (("shared_buffers", "96MB"), ("max_connections", "50")):
            assert connection.execute("SELECT current_setting(%s)", [name]).fetchone() == (wanted,)


def a_down_without_a_state_removes_nothing(checkout: Checkout) -> None:
    """One that cannot read the state."""
    file, running = crash.checkpoint(checkout), daemons(checkout)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    assert "is damaged" in checkout.run(*DOWN, expect=1).stderr
    file.write_text(whole)
    assert daemons(checkout) == running
    assert running["patroni"]


def an_interrupted_down_is_undone_or_finished_by_up(checkout: Checkout) -> None:
    """Before the data is discarded, `up` undoes it; afterwards, `up` finishes it and makes a new stack."""
    key, kept = checkout.output("api_key"), traces(checkout)
    strike_once(checkout, DOWN, "unsaved", GIVEN_UP, "SIGKILL")
    assert checkout.json(*UP)["status"]["healthy"]
    assert traces(checkout) == kept >= 1000
    assert checkout.output("api_key") == key
    strike_once(checkout, DOWN, "saved", GIVEN_UP, "SIGINT")
    assert "was interrupted before it finished" in checkout.run("preview", *EMBEDDED, expect=1).stderr
    assert checkout.json(*UP)["status"]["healthy"]
    assert traces(checkout) == 1000
    assert checkout.output("api_key") != key
    assert crash.leftovers(checkout) == []


def test_down_is_refused_while_another_run_holds_the_lock(checkout: Checkout) -> None:
    checkout.home.mkdir(parents=True)
    options = engine.StackOptions(
        cwd=checkout.root, stack="local", backend=checkout.root / ".observatory/backend", passphrase=""
    )
    with engine.locked(options):
        for arguments in (KEEP, DOWN):
            assert f"(pid {os.getpid()})" in checkout.run(*arguments, expect=3).stderr
    assert checkout.home.exists()
    for arguments in (KEEP, DOWN):
        checkout.run(*arguments)
