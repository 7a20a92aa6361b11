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
from tests.support.waiting import until

COMPRESSED = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed"
JOBS = "SELECT job_id FROM timescaledb_information.jobs WHERE job_id >= 1000 ORDER BY job_id"
# Not only those that succeed: from 17.12 on PostgreSQL lets no background job of TimescaleDB up to 2.29.2 succeed.
RUNS = "SELECT sum(total_runs)::int FROM timescaledb_information.job_stats WHERE job_id >= 1000"
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
    assert "Add --yes" in stack.run("deploy", "database", "--edition", "community", expect=3).stderr
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
    restores_are_exact(stack, compress(stack))


def compress(stack: Checkout) -> str:
    """Compress every chunk of the traces; return a time after it."""
    with connect(owner(stack), purpose="test") as connection:
        connection.execute(
            "SELECT compress_chunk(chunk, if_not_compressed => true) FROM show_chunks('llm_traces') chunk"
        )
        assert connection.execute(COMPRESSED).fetchall() != [(0,)]
        return str(connection.execute("SELECT clock_timestamp()").fetchall()[0][0])


def restores_are_exact(stack: Checkout, time: str) -> None:
    """A drill passes, and a rollback keeps compressed chunks, aggregates and jobs, which run again."""
    before = counts(stack)
    drill = stack.json("backup", "restore-test")
    assert drill["result"] == "passed", drill
    with connect(owner(stack), purpose="test") as connection:
        [(chunks,), *_] = connection.execute(COMPRESSED).fetchall()
        connection.execute("INSERT INTO users (id) VALUES ('later')")
    stack.run("rollback", "--method", "database", "--to-time", time, "--yes")
    with connect(owner(stack), purpose="test") as connection:
        assert connection.execute("SELECT FROM users WHERE id = 'later'").fetchall() == []
        assert connection.execute(COMPRESSED).fetchall() == [(chunks,)]
        [(started,)] = connection.execute(RUNS).fetchall()
        for (job,) in connection.execute(JOBS).fetchall():
            connection.execute("CALL run_job(%s)", [job])
    assert counts(stack) == before
    until(lambda: runs(stack) > started, "a job of TimescaleDB to run again", timeout_s=600, pause_s=1)
    assert set(stack.json("up", "--engine", "embedded")["summary"]) == {"same"}


def runs(stack: Checkout) -> int:
    with connect(owner(stack), purpose="test") as connection:
        return int(connection.execute(RUNS).fetchall()[0][0])
