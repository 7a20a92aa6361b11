"""`preview` before a stack exists, and operations that need the Pulumi CLI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import SOURCE, Checkout

EMBEDDED = ("--engine", "embedded")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A fresh checkout in which no test creates anything; it has no root filesystem."""
    return Checkout.copy(tmp_path_factory.mktemp("fresh"), rootfs=None)


def made(checkout: Checkout) -> list[Path]:
    return [path for path in (checkout.root / ".observatory", checkout.root / "dist") if path.exists()]


def test_a_preview_on_a_fresh_checkout_plans_everything_and_creates_nothing(fresh: Checkout) -> None:
    plan = fresh.json("preview", *EMBEDDED)
    assert made(fresh) == []
    assert plan["offline"]
    assert set(plan["summary"]) == {"create"}
    assert any("first values from settings" in note for note in plan["notes"])
    assert any("is not built yet" in note for note in plan["notes"])
    schema = next(step for step in plan["steps"] if step["name"] == "schema")
    assert "CREATE TABLE" in schema["pending_migrations"][0]["sql"]
    assert plan["outputs"]["api_key"] == "[unknown]"


def test_an_up_of_the_program_alone_names_the_bootstrap(fresh: Checkout, tmp_path: Path) -> None:
    """As by `pulumi up` on a fresh checkout."""
    command = [sys.executable, "-m", "observatory.engines.embedded", "up", "--stack", "local"]
    engine = {"PULUMI_BACKEND_URL": f"file://{tmp_path}", "PULUMI_CONFIG_PASSPHRASE": "x"}
    environment = {**os.environ, **fresh.environment, **engine}
    done = subprocess.run(command, cwd=fresh.root, env=environment, capture_output=True, text=True, check=False)
    assert "run `observatory bootstrap -e local` first" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_requirements_that_the_cli_names_exist() -> None:
    """`pulumi install` and the message about a missing virtual environment name `requirements.txt`."""
    (included,) = [line for line in (SOURCE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert (SOURCE / included.removeprefix("-r ")).exists()


def test_an_offline_plan_of_an_aws_stack_reads_no_rollout_document(fresh: Checkout) -> None:
    plan = fresh.json("preview", "-e", "staging", *EMBEDDED, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert plan["offline"]
    assert any("first values from settings" in note for note in plan["notes"])


@pytest.mark.cli
def test_a_preview_of_a_new_local_stack_by_the_cli_creates_nothing(fresh: Checkout) -> None:
    assert fresh.json("preview")["offline"]
    assert made(fresh) == []


@pytest.mark.cli
def test_a_preview_of_a_new_aws_stack_by_the_cli_needs_no_credentials_and_creates_nothing(fresh: Checkout) -> None:
    before = (fresh.root / "Pulumi.production.yaml").read_bytes()
    plan = fresh.json("preview", "-e", "production", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert plan["offline"]
    assert made(fresh) == []
    assert (fresh.root / "Pulumi.production.yaml").read_bytes() == before


def test_a_wrong_setting_is_reported_before_planning(fresh: Checkout, tmp_path: Path) -> None:
    shutil.copytree(fresh.root, tmp_path / "wrong")
    wrong = Checkout(root=tmp_path / "wrong", environment={"PYTHONPATH": str(tmp_path / "wrong")})
    wrong.configure(fleets={"size": 0})
    assert "fleets.size" in wrong.run("preview", *EMBEDDED, expect=2).stderr


def test_the_status_of_an_aws_stack_is_refused_with_where_to_find_it(fresh: Checkout) -> None:
    said = fresh.json("status", "-e", "production", expect=2)["error"]["message"]
    assert "https://prometheus.platform.example.com" in said
    assert "observatory outputs -e production" in said


@pytest.mark.parametrize("command", [("up",), ("down", "--yes")])
def test_an_operation_that_needs_plugins_is_refused_without_the_cli(fresh: Checkout, command: tuple[str, ...]) -> None:
    said = fresh.json(*command, "-e", "production", *EMBEDDED, expect=3)["error"]["message"]
    assert "https://www.pulumi.com/docs/install/" in said or "leave --engine embedded out" in said
    assert f"observatory {command[0]} -e production" in said
    assert "Nothing was changed" in said
    assert made(fresh) == []
