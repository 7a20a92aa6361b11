"""The root filesystem holds every daemon, and a build that fails leaves nothing behind."""

import os
import shutil
from pathlib import Path

import pytest

from observatory.runtime import RootfsError, Sandbox, ensure_rootfs, mmdebstrap, package_versions, rootfs_path
from observatory.runtime import rootfs as module

DAEMONS = {
    "postgres": "17.",
    "patroni": "4.",
    "etcd": "3.5",
    "pgbouncer": "1.",
    "haproxy -v": "3.0",
    "valkey-server": "8.",
    "prometheus": "2.53",
    "promtool": "2.53",
    "prometheus-alertmanager": "0.28",
    "amtool": "0.28",
    "prometheus-postgres-exporter": "0.",
    "prometheus-pgbouncer-exporter": "0.",
    "prometheus-node-exporter": "1.",
    "supervisord": "4.",
    "openssl version": "3.",
    "pgbackrest version": "2.",
    "python3": "3.13",
}


@pytest.fixture
def inside(tmp_path: Path, rootfs: Path) -> Sandbox:
    return Sandbox(tmp_path, rootfs)


@pytest.mark.parametrize(("program", "version"), DAEMONS.items())
def test_every_daemon_runs(inside: Sandbox, program: str, version: str) -> None:
    command = program.split() if " " in program else [program, "--version"]
    result = inside.run(command)
    assert version in result.stdout + result.stderr


@pytest.mark.parametrize(
    "program", ["prometheus-pgbackrest-exporter", "prometheus-redis-exporter", "wrk", "etcdctl", "awk"]
)
def test_every_tool_is_there(inside: Sandbox, program: str) -> None:
    assert inside.run(["sh", "-c", f"command -v {program}"]).returncode == 0


def test_patroni_finds_its_client_of_etcd(inside: Sandbox) -> None:
    inside.run(["python3", "-c", "import patroni.dcs.etcd3"])


def test_python_is_compiled(rootfs: Path) -> None:
    assert list(rootfs.glob("usr/lib/python3/dist-packages/patroni/__pycache__/ha.*.pyc"))
    assert list(rootfs.glob("usr/lib/python3.13/asyncio/__pycache__/events.*.pyc"))


def test_names_and_certificates_are_found(inside: Sandbox) -> None:
    assert inside.run(["getent", "hosts", "localhost"]).returncode == 0
    assert inside.run(["getent", "passwd", "observatory"]).returncode == 0
    probe = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    assert int(inside.run(["python3", "-c", probe]).stdout) > 100


def test_versions_of_packages(rootfs: Path) -> None:
    versions = package_versions(rootfs)
    assert versions["postgresql-17"].startswith("17.")
    assert ":" in versions["prometheus-pgbouncer-exporter"]


def test_a_given_root_filesystem_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rootfs: Path) -> None:
    monkeypatch.setenv("OBSERVATORY_ROOTFS", str(rootfs))
    assert ensure_rootfs(tmp_path) == rootfs == rootfs_path(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_given_root_filesystem_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OBSERVATORY_ROOTFS", str(tmp_path))
    with pytest.raises(RootfsError, match=r"OBSERVATORY_ROOTFS=.* lacks usr/bin/supervisord"):
        ensure_rootfs(tmp_path / "cache")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache in which a root filesystem has to be built."""
    monkeypatch.delenv("OBSERVATORY_ROOTFS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package mirror is behind a proxy that is not there."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir() and path.name.startswith("rootfs"))


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_is_explained(cache: Path) -> None:
    with pytest.raises(RootfsError, match=r"(?s)cannot be (reached|downloaded).*127\.0\.0\.1"):
        ensure_rootfs(cache)
    assert leftovers(cache) == []


def test_an_interrupted_build_leaves_nothing(cache: Path) -> None:
    def interrupt(message: str, _fraction: float | None) -> None:
        if message.startswith("Reading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_rootfs(cache, progress=interrupt)
    assert leftovers(cache) == []
    assert [process for process in Path("/proc").glob("[0-9]*/cmdline") if str(cache) in command_line(process)] == []


def command_line(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_what_a_killed_build_left_is_removed(cache: Path) -> None:
    partial = cache / f"{rootfs_path(cache).name}.partial"
    partial.mkdir(parents=True)
    before: list[str] = []

    def look(_message: str, _fraction: float | None) -> None:
        before.extend(leftovers(cache))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_rootfs(cache, progress=look)
    assert before == []


def test_a_full_disk_is_told_before(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPACE_NEEDED", 1 << 60)
    with pytest.raises(RootfsError, match="GB free; the root filesystem needs"):
        ensure_rootfs(cache)


def test_a_disk_that_fills_up_is_named(tmp_path: Path) -> None:
    log = tmp_path / "rootfs.log"
    log.write_text(
        "I: extracting archives...\ntar: ./usr/bin/x: Cannot write: No space left on device\nE: tar failed\n"
    )
    assert "the disk is full" in module._failure(log)


def test_a_cache_that_cannot_be_made(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(RootfsError, match="cannot build the root filesystem in"):
        ensure_rootfs(cache)


def test_older_root_filesystems_go_unless_something_runs_from_them(cache: Path, rootfs: Path) -> None:
    older, used = cache / "rootfs-older", cache / "rootfs-used"
    older.mkdir(parents=True)
    used.symlink_to(rootfs)
    sandbox = Sandbox(cache / "home", rootfs)
    sandbox.start()
    try:
        module._remove_others(cache / "rootfs-current")
    finally:
        sandbox.stop()
    assert not older.exists()
    assert used.exists()


def test_a_host_without_apt(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "apt-get" else which(name))
    with pytest.raises(RootfsError, match="needs apt-get"):
        ensure_rootfs(cache)


def test_missing_tools_are_fetched_without_installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the network: the packages come from the host's own release."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mmdebstrap" else which(name))
    monkeypatch.setattr(mmdebstrap, "HOST_KEYRINGS", tmp_path / "none")
    tool = mmdebstrap.find(tmp_path / "tools")
    assert os.access(tool.command[-1], os.R_OK)
    assert tool.keyring.is_file()
    assert tmp_path in tool.keyring.parents
