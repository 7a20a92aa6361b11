"""Tests of the unpacked artifact on Debian's Python, with nothing else installed."""

import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.build import BuiltArtifact, build
from tests.service.harness import Service, StorageDatabase, item, post, running_service
from tests.support.postgres import PostgresServer
from tests.support.sandboxes import sandboxed as in_sandbox
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

VERSION = "v0.9.0-test"
MAX_RSS_BYTES = 90 * 1024 * 1024


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltArtifact:
    return build(VERSION, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(built: BuiltArtifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("release")
    with tarfile.open(built.path) as archive:
        archive.extractall(directory, filter="data")
    return directory


def sandboxed(server: PostgresServer, release: Path, *binds: Path) -> list[str]:
    """Return the command that runs the unpacked launcher in the root filesystem, read-only."""
    return in_sandbox(server.rootfs, release, ["/srv/bin/storage-service"], files=binds)


@pytest.fixture(scope="module")
def deployed(
    postgres: PostgresServer, database: StorageDatabase, unpacked: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    command = sandboxed(postgres, unpacked, database.password_file)
    with running_service(database, tmp_path_factory.mktemp("deployed"), {}, command=command) as service:
        service.wait_until_ready()
        yield service


def test_launcher_prints_its_version(postgres: PostgresServer, unpacked: Path) -> None:
    done = subprocess.run([*sandboxed(postgres, unpacked), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{VERSION}\n"


def test_artifact_stores_and_reads(deployed: Service) -> None:
    client = deployed.client()
    sent = item(attributes={"a": 1}, tags=["x"])
    answer = post(client, sent, sent)
    assert (answer.status_code, answer.json()) == (201, {"accepted": 2})
    assert answer.headers["x-observatory-version"] == VERSION
    (stored,) = client.get(f"/v1/traces/{sent['trace_id']}").json()["items"]
    assert stored["attributes"] == {"a": 1}


def test_memory_is_bounded(deployed: Service) -> None:
    client = deployed.client()
    for _ in range(5):
        assert post(client, *(item(input_text="x" * 1000) for _ in range(1000))).status_code == 201
    assert psutil.Process(deployed.pid).memory_info().rss < MAX_RSS_BYTES


def test_sigterm_exits_with_status_0(deployed: Service) -> None:
    deployed.terminate()
    assert deployed.process.wait(timeout=PATIENCE_S) == 0
