"""A stack of TimescaleDB's Apache edition is moved to the community edition, where that is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from observatory.database import connect
from tests.stack.test_deploy_database import owner
from tests.support.checkout import Checkout

LIBRARIES = Path("usr/lib/postgresql/17/lib")  # in Debian


@pytest.fixture
def community_rootfs(rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the stack's root filesystem with the community edition's library of the same version."""
    prefix = os.environ.get("OBSERVATORY_PG_PREFIX")
    if not prefix:
        pytest.skip("needs TimescaleDB's community edition: OBSERVATORY_PG_PREFIX names no installation")
    made = tmp_path_factory.mktemp("community") / "rootfs"
    subprocess.run(["cp", "--archive", "--reflink=auto", rootfs.resolve(), made], check=True)  # not the link
    for library in (Path(prefix) / "lib").glob("timescaledb*.so"):
        shutil.copy(library, made / LIBRARIES)
    yield made
    shutil.rmtree(made)  # it is large, and pytest keeps what three runs leave


def counts(stack: Checkout) -> list[tuple[object, ...]]:
    """Traces, and what the aggregates hold of them."""
    with connect(owner(stack), purpose="test") as connection:
        return [
            connection.execute(f"SELECT count(*), sum(request_count) FROM {view}".encode()).fetchone() or ()
            for view in ("llm_metrics_1min", "llm_metrics_1hour", "llm_metrics_1day", "cost_analysis_hourly")
        ]


@pytest.mark.community
def test_a_stack_is_moved_to_the_community_edition(community_rootfs: Path, checkout: Checkout) -> None:
    checkout.run("up", "--engine", "embedded")
    with connect(owner(checkout), purpose="test") as connection:
        connection.execute("CALL observatory.refresh_aggregate('llm_metrics_1min', now() - INTERVAL '1 day', now())")
    before = counts(checkout)
    assert before[0] > (0, 0)
    environment = {**checkout.environment, "OBSERVATORY_ROOTFS": str(community_rootfs)}
    stack = replace(checkout, environment=environment)

    stack.run("up", "--engine", "embedded")  # goes on as it was
    assert stack.json("deploy", "database", "--verify-only")["edition"] == "apache"
    assert "add --yes" in stack.run("deploy", "database", "--edition", "community", expect=3).stderr
    planned = stack.json("deploy", "database", "--edition", "community", "--dry-run")
    moved = stack.json("deploy", "database", "--edition", "community", "--yes")

    assert (
        moved["applied"]
        == planned["migrations"]
        == [
            "004_continuous_aggregates",
            "005_retention_policies",
            "008_quiet_refresh",
        ]
    )
    assert moved["backup_label"] == stack.json("backup", "list")[-1]["label"]
    assert (moved["verification"]["edition"], moved["verification"]["passed"]) == ("community", True)
    assert counts(stack) == before
    assert stack.json("deploy", "database", "--edition", "community")["applied"] == []
    assert set(stack.json("up", "--engine", "embedded")["summary"]) == {"same"}
