"""A gate finds a bad version and rolls it back; rolling updates, good and bad.

`make prove PROOF=versions` has all bad versions, each with the gate that should find it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.operations.rollout_control import control_rollout
from observatory.workspace import Workspace
from tests.stack.conftest import a_checkout
from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.delivery import (
    EMBEDDED,
    Load,
    bring_up_with_versions,
    document,
    moves_of,
    out_of_it,
    until,
    versions_of,
)

CANARY = 80  # percent: the more requests, the sooner there are enough errors to judge


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack with two instances in each fleet, and a good and a bad version in its store."""
    with a_checkout(tmp_path_factory.mktemp("versions"), rootfs) as checkout:
        checkout.configure(fleets={"size": 2})
        bring_up_with_versions(checkout, "v0.2.0", "v0.3.0")
        yield checkout


def test_a_bad_canary_is_rolled_back_by_its_gate_and_few_requests_fail(pair: Checkout) -> None:
    with Load(pair) as load:
        output = pair.run(
            "deploy", "application", "--version", "v0.3.0", "--strategy", "canary",
            "--canary-percentage", str(CANARY), "--bake", "90", "--skip-tests", *EMBEDDED, expect=1,
        ).stderr  # fmt: skip
    assert "errors" in output
    assert len(load.failed) < sum(load.versions.values()) * 0.4
    current = document(pair)
    assert (current["blue"]["weight"], current["deployment"]["status"]) == (100, "rolled-back")
    assert current["deployment"]["step"] == 0


def test_a_rolling_update_and_its_rollback_lose_no_request(pair: Checkout) -> None:
    workspace = Workspace(root=pair.root, stack="local")
    rolling = ("--version", "v0.2.0", "--strategy", "rolling", "--batch-size", "1", "--bake", "20", "--skip-tests")
    with Load(pair) as load:
        deploying = pair.start("deploy", "application", *rolling, *EMBEDDED, "--output", "json")
        until(lambda: (document(pair)["blue"]["rolling"] or {}).get("instances") == ["blue-1"] and not out_of_it(pair))
        assert control_rollout(workspace, "pause").acknowledged  # the next instance waits, however slow `up` is
        assert (document(pair)["blue"]["version"], document(pair)["blue"]["rolling"]["version"]) == ("v0.1.0", "v0.2.0")
        assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}
        assert control_rollout(workspace, None).acknowledged
        out, err = deploying.communicate(timeout=UP_TIMEOUT_S)
        assert deploying.returncode == 0, err
        done = json.loads(out)
        assert (done["blue"]["version"], done["blue"]["weight"], done["blue"]["rolling"]) == ("v0.2.0", 100, None)
        assert versions_of(pair) == {"v0.2.0"}
        back = pair.json("rollback", "--method", "blue-green", "--yes", *EMBEDDED)
        assert (back["blue"]["version"], back["blue"]["rolling"]) == ("v0.1.0", None)
    assert load.failed == []
    assert load.versions["v0.2.0"] > 100
    assert versions_of(pair) == {"v0.1.0"}
    assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}


def test_a_rolling_update_stops_at_the_first_bad_instance_and_rolls_back(pair: Checkout) -> None:
    with Load(pair) as load:
        output = pair.run(
            "deploy", "application", "--version", "v0.3.0", "--strategy", "rolling", "--bake", "90", "--skip-tests",
            *EMBEDDED, expect=1,
        ).stderr  # fmt: skip
    assert "errors" in output
    assert moves_of(pair, document(pair)["deployment"]["id"]) == [("moved", ["blue-1"]), ("moved-back", ["blue-1"])]
    assert len(load.failed) < sum(load.versions.values()) * 0.2
    assert versions_of(pair) == {"v0.1.0"}


def test_a_batch_of_all_instances_is_refused(pair: Checkout) -> None:
    arguments = ("--version", "v0.2.0", "--strategy", "rolling", "--batch-size", "2")
    assert "between 1 and 1" in pair.run("deploy", "application", *arguments, *EMBEDDED, expect=3).stderr
