"""Fixtures of the whole suite."""

import inspect
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest

from observatory.runtime import sandbox
from observatory.workspace import Workspace
from tests.support import language_host
from tests.support.checkout import end_commands
from tests.support.postgres import PostgresServer, community_server, postgres_server
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
BUILT_CLI = ROOT / ".observatory/bin"  # where `make cli` builds it
# Files that take minutes, the longest first: one that began last would keep one worker busy after the others.
LONGEST = (
    "stack/test_delivery.py",
    "stack/test_faults.py",
    "stack/test_bad_versions.py",
    "stack/test_database_rollback.py",
    "stack/test_crash_matrix.py",
    "stack/test_upgrade.py",
    "stack/test_monitoring.py",
    "stack/test_scheduler.py",
    "stack/test_lost_machine.py",
    "stack/test_recovery.py",
    "engines/embedded/test_conformance.py",  # of the tests marked `cli`
    "stack/test_cli.py",
    "components/test_staging_cli.py",
)

# Examples are the same in each run, and none fails because it took long on a busy machine.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_configure() -> None:
    """Let commands be interrupted where a shell runs the suite in the background: children inherit what is ignored.

    Requests of tests have httpx's default timeout, which is 5 s; a busy machine may take longer for an answer. The code
    under test sets its own. A supervisor that tests start in their own process may take longer, too.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    default = inspect.signature(httpx.Client).parameters["timeout"].default
    default.connect = default.read = default.write = default.pool = PATIENCE_S
    sandbox.START_SECONDS = int(PATIENCE_S)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with the longest tests first, and skip the tests marked `cli` where there is no CLI."""
    sharing = {item.path for item in items if "shared_stack" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: _rank(item, sharing))
    if shutil.which("pulumi", path=_path_with_cli()) is None:
        for item in items:
            if item.get_closest_marker("cli"):
                item.add_marker(pytest.mark.skip(reason="needs the Pulumi CLI; run `make cli`"))


def _rank(item: pytest.Item, sharing: set[Path]) -> tuple[int, int]:
    """Return the place of an item's file: stacks, other long files, and the short ones, which end all workers together.

    The files that share a stack come after the others, so that it is not up, and does not use a core, beside theirs.
    """
    name = item.path.relative_to(ROOT / "tests").as_posix()
    place = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    if item.get_closest_marker("cli"):
        return 0, place
    if "stack" in item.path.parts:
        return (1 if item.path in sharing else 0), place
    return (2 if item.get_closest_marker("slow") else 3), place


def _path_with_cli() -> str:
    """Return PATH with the CLI that `make cli` builds and its language host; without that CLI, PATH as it is."""
    path = os.environ.get("PATH", os.defpath)
    if not (BUILT_CLI / "pulumi").exists():
        return path
    return os.pathsep.join([str(BUILT_CLI), str(language_host.BIN), str(Path(sys.executable).parent), path])


@pytest.fixture(autouse=True)
def _cli_on_path(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Put the CLI on PATH for the tests marked `cli`, with a home of its own; the others find the machine's PATH."""
    if request.node.get_closest_marker("cli"):
        monkeypatch.setenv("PATH", _path_with_cli())
        monkeypatch.setenv("PULUMI_HOME", str(tmp_path_factory.getbasetemp() / "pulumi"))


@pytest.fixture(autouse=True)
def _no_command_outlives_its_test() -> Iterator[None]:
    """End what a failed test has started; fixtures wait for their commands."""
    yield
    end_commands()


@pytest.fixture(scope="session")
def rootfs() -> Path:
    """The root filesystem of the checkout, built first where it is missing."""
    return Workspace(root=ROOT, stack="local").ensure_rootfs()


@pytest.fixture(scope="session")
def postgres(rootfs: Path) -> Iterator[PostgresServer]:
    """One real PostgreSQL with TimescaleDB for the session; take a database of your own from it."""
    with postgres_server(rootfs) as server:
        yield server


@pytest.fixture(scope="session")
def community_postgres(rootfs: Path) -> Iterator[PostgresServer]:
    """One real PostgreSQL with TimescaleDB's community edition for the session, where there is one."""
    server = community_server(rootfs)
    if server is None:
        pytest.skip("needs TimescaleDB's community edition: OBSERVATORY_PG_PREFIX names no installation")
    with server as running:
        yield running


@pytest.fixture
def fresh_database(postgres: PostgresServer) -> Iterator[str]:
    """Name of a new database of the superuser's with its extensions, dropped after the test."""
    with postgres.fresh_database() as name:
        yield name


@pytest.fixture
def hangup() -> Iterator[None]:
    """Let SIGHUP end what the test starts, also where the suite runs under `nohup`, which lets children ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
