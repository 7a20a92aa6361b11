"""Each gate finds its bad version and rolls it back; rolling updates, good and bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

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

CANARY = 25  # percent


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Checkout]:
    """A stack with several versions in its store."""
    with a_checkout(tmp_path_factory.mktemp("versions"), rootfs) as checkout:
        bring_up_with_versions(checkout)
        yield checkout


@pytest.mark.parametrize(
    ("version", "gate"), [("v0.3.0", "errors"), ("v0.9.0", "p95"), ("v0.10.0", "saturation"), ("v0.11.0", "restarts")]
)
def test_a_bad_canary_is_rolled_back_by_its_gate_and_few_requests_fail(own: Checkout, version: str, gate: str) -> None:
    with Load(own) as load:
        output = own.run(
            "deploy", "application", "--version", version, "--strategy", "canary",
            "--canary-percentage", str(CANARY), "--bake", "90", *EMBEDDED, expect=1,
        ).stderr  # fmt: skip
    assert gate in output
    assert len(load.failed) < sum(load.versions.values()) * CANARY / 100
    if gate == "saturation":
        # One connection is left: the service stays up, and only a busy machine makes a write wait too long for it.
        assert [each for each in load.failed if "no database connection" not in each] == []
    current = own.json("status")["rollout"]
    assert (current["blue"]["weight"], current["deployment"]["status"]) == (100, "rolled-back")
    assert current["deployment"]["step"] == 0


def test_a_version_that_never_becomes_ready_gets_no_traffic(own: Checkout) -> None:
    with Load(own) as load:
        own.run(
            "deploy", "application", "--version", "v0.4.0", "--strategy", "blue-green", "--skip-tests", *EMBEDDED,
            expect=1,
        )  # fmt: skip
    assert load.failed == []
    assert "v0.4.0" not in load.versions
    assert own.json("status")["rollout"]["deployment"]["tests"] == "skipped"


@pytest.fixture(scope="module")
def pair(own: Checkout) -> Checkout:
    """The same stack with two instances in each fleet."""
    own.configure(fleets={"size": 2})
    own.run("up", *EMBEDDED)
    return own


def test_a_rolling_update_and_its_rollback_lose_no_request(pair: Checkout) -> None:
    rolling = ("--version", "v0.2.0", "--strategy", "rolling", "--batch-size", "1", "--bake", "8", *EMBEDDED)
    with Load(pair) as load:
        deploying = pair.start("deploy", "application", *rolling, "--output", "json")
        until(lambda: (document(pair)["blue"]["rolling"] or {}).get("instances") == ["blue-1"] and not out_of_it(pair))
        assert (document(pair)["blue"]["version"], document(pair)["blue"]["rolling"]["version"]) == ("v0.1.0", "v0.2.0")
        assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}
        out, err = deploying.communicate(timeout=UP_TIMEOUT_S)
        assert deploying.returncode == 0, err
        done = json.loads(out)
        assert (done["blue"]["version"], done["blue"]["weight"], done["blue"]["rolling"]) == ("v0.2.0", 100, None)
        assert set(pair.json("up", *EMBEDDED)["summary"]) == {"same"}
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
            "deploy", "application", "--version", "v0.3.0", "--strategy", "rolling", *EMBEDDED, expect=1
        ).stderr  # fmt: skip
    assert "errors" in output
    assert moves_of(pair, document(pair)["deployment"]["id"]) == [("moved", ["blue-1"]), ("moved-back", ["blue-1"])]
    assert len(load.failed) < sum(load.versions.values()) * 0.2
    assert versions_of(pair) == {"v0.1.0"}


def test_a_batch_of_all_instances_is_refused(pair: Checkout) -> None:
    arguments = ("--version", "v0.2.0", "--strategy", "rolling", "--batch-size", "2")
    assert "between 1 and 1" in pair.run("deploy", "application", *arguments, *EMBEDDED, expect=3).stderr
