"""The root filesystem holds every daemon, and a build that fails leaves nothing behind."""

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from observatory.files.cache import VARIABLE, CacheError
from observatory.nodes.daemons import packages
from observatory.runtime import RootfsError, Sandbox, ensure_rootfs, mmdebstrap, package_versions, rootfs_path
from observatory.runtime import rootfs as module

pytestmark = pytest.mark.slow

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
    assert ensure_rootfs(tmp_path, ()) == rootfs == rootfs_path(tmp_path, ())
    assert list(tmp_path.iterdir()) == []


def test_a_given_root_filesystem_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OBSERVATORY_ROOTFS", str(tmp_path))
    with pytest.raises(RootfsError, match=r"OBSERVATORY_ROOTFS=.* lacks usr/bin/supervisord"):
        ensure_rootfs(tmp_path / "cache", ())


PACKAGES = ("etcd-server",)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory that all checkouts of the user share."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shared"))
    return tmp_path / "shared"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: Path) -> Path:
    """An empty cache of a checkout, for which a root filesystem has to be built."""
    monkeypatch.delenv("OBSERVATORY_ROOTFS", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every package mirror is behind a proxy that is not there."""
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)


def leftovers(*caches: Path) -> list[str]:
    paths = [path for cache in caches if cache.exists() for path in cache.glob("*rootfs*")]
    return sorted(path.name for path in paths if path.is_dir() or path.is_symlink())


@pytest.mark.usefixtures("no_network")
def test_a_failed_download_is_explained(cache: Path, shared: Path) -> None:
    with pytest.raises(RootfsError, match=r"(?s)cannot be (reached|downloaded).*127\.0\.0\.1"):
        ensure_rootfs(cache, PACKAGES)
    assert leftovers(cache, shared) == []


def test_an_interrupted_build_leaves_nothing(cache: Path, shared: Path) -> None:
    def interrupt(message: str, _fraction: float | None) -> None:
        if message.startswith("Reading"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_rootfs(cache, PACKAGES, progress=interrupt)
    assert leftovers(cache, shared) == []
    assert [process for process in Path("/proc").glob("[0-9]*/cmdline") if str(shared) in command_line(process)] == []


def command_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def test_what_a_killed_build_left_is_removed(cache: Path, shared: Path) -> None:
    for name in (rootfs_path(cache, PACKAGES).name, "rootfs-older"):
        (shared / f"{name}.partial").mkdir(parents=True)
    shared.chmod(0o700)
    before: list[str] = []

    def look(message: str, _fraction: float | None) -> None:
        if message.startswith("Preparing to build"):
            before.extend(leftovers(shared))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_rootfs(cache, PACKAGES, progress=look)
    assert before == []


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where root filesystems were built: each takes a moment and holds no more than what a check requires."""
    built: list[Path] = []

    def extract(partial: Path, _packages: object, _lock: int, _progress: object) -> None:
        time.sleep(0.2)
        for name in module.REQUIRED:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text("\nobservatory:x:1000:\n")
        built.append(partial.parent)

    monkeypatch.setattr(module, "_extract", extract)
    monkeypatch.setattr(module, "_configure", lambda _rootfs: None)
    return built


def checkout(tmp_path: Path, name: str) -> Path:
    """Return the cache of a checkout."""
    return tmp_path / name / ".observatory/cache"


@pytest.mark.usefixtures("cache")
def test_a_second_checkout_shares_what_the_first_has_built(tmp_path: Path, shared: Path, builds: list[Path]) -> None:
    first, second = (ensure_rootfs(checkout(tmp_path, name), PACKAGES) for name in ("first", "second"))
    assert builds == [shared]
    assert first != second
    assert first.samefile(second)
    assert second == rootfs_path(checkout(tmp_path, "second"), PACKAGES)


@pytest.mark.usefixtures("cache")
def test_checkouts_that_start_at_once_build_once(tmp_path: Path, shared: Path, builds: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: ensure_rootfs(checkout(tmp_path, name), PACKAGES), "aabc"))
    assert builds == [shared]
    assert all(rootfs.samefile(found[0]) for rootfs in found)


@pytest.mark.usefixtures("cache")
def test_another_recipe_is_another_root_filesystem(tmp_path: Path, shared: Path, builds: list[Path]) -> None:
    one, other = (ensure_rootfs(checkout(tmp_path, "one"), packages) for packages in (PACKAGES, (*PACKAGES, "wrk")))
    assert builds == [shared, shared]
    assert not other.samefile(shared / one.name)
    assert not one.exists(), "the checkout's link to the older one"
    assert (shared / one.name).is_dir(), "other checkouts may use it"


@pytest.mark.usefixtures("shared")
def test_a_checkout_keeps_its_own_root_filesystem(cache: Path, builds: list[Path]) -> None:
    """Its stack runs from there: version 0.1 built one in every checkout."""
    own = rootfs_path(cache, PACKAGES)
    module._extract(own, PACKAGES, 0, lambda _message, _fraction: None)
    assert ensure_rootfs(cache, PACKAGES) == own
    assert not own.is_symlink()
    assert builds == [cache]


def test_version_0_1_named_the_recipe_of_the_daemons_otherwise(tmp_path: Path) -> None:
    if "OBSERVATORY_ROOTFS" not in os.environ:
        assert rootfs_path(tmp_path, packages("local")).name == "rootfs-4e61a6c3725e"


def test_removing_a_checkout_leaves_what_others_share(cache: Path, shared: Path, builds: list[Path]) -> None:
    rootfs = ensure_rootfs(cache, PACKAGES)
    shutil.rmtree(cache)
    assert (shared / rootfs.name / module.REQUIRED[0]).exists()


def test_a_removed_or_damaged_shared_root_filesystem_is_built_again(
    cache: Path, shared: Path, builds: list[Path]
) -> None:
    rootfs = ensure_rootfs(cache, PACKAGES)
    shutil.rmtree(shared)
    assert ensure_rootfs(cache, PACKAGES) == rootfs
    (shared / rootfs.name / module.REQUIRED[0]).unlink()
    assert ensure_rootfs(cache, PACKAGES) == rootfs
    assert builds == [shared] * 3
    assert (rootfs / module.REQUIRED[0]).exists()


def foreign(shared: Path) -> None:
    shared.mkdir()
    if os.geteuid() == 0:
        os.chown(shared, 4242, 4242)
    else:
        shared.chmod(0o777)


def writable_by_others(shared: Path) -> None:
    shared.mkdir()
    shared.chmod(0o777)


def a_file(shared: Path) -> None:
    shared.touch()


UNUSABLE = pytest.mark.parametrize("spoil", [foreign, writable_by_others, a_file])


@UNUSABLE
def test_a_checkout_builds_its_own_where_the_shared_directory_cannot_be_used(
    cache: Path, tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spoil(tmp_path / "llm-observatory")
    said: list[str] = []
    rootfs = ensure_rootfs(cache, PACKAGES, progress=lambda message, _fraction: said.append(message))
    assert builds == [cache]
    assert not rootfs.is_symlink()
    assert "llm-observatory cannot be used" in said[0]


@UNUSABLE
def test_a_named_directory_that_cannot_be_used_is_an_error(
    cache: Path, shared: Path, builds: list[Path], spoil: Callable[[Path], None]
) -> None:
    spoil(shared)
    with pytest.raises(CacheError, match=rf"{VARIABLE}=.*cannot be used: .*\nName a directory of your own"):
        ensure_rootfs(cache, PACKAGES)
    assert builds == []


def test_a_read_only_shared_directory_is_used_as_far_as_it_goes(
    cache: Path, shared: Path, tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_rootfs(cache, PACKAGES)
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != shared)  # what a read-only mount answers
    assert ensure_rootfs(checkout(tmp_path, "second"), PACKAGES).samefile(shared / rootfs_path(cache, PACKAGES).name)
    with pytest.raises(CacheError, match="it is read-only"):
        ensure_rootfs(checkout(tmp_path, "third"), (*PACKAGES, "wrk"))


def test_a_shared_root_filesystem_that_no_checkout_uses_goes_after_a_month(
    cache: Path, shared: Path, builds: list[Path]
) -> None:
    ensure_rootfs(cache, PACKAGES)
    for name, days in (("rootfs-old", 31), ("rootfs-recent", 29)):
        (shared / name).mkdir()
        os.utime(shared / name, times=(0, time.time() - days * 24 * 3600))
    ensure_rootfs(cache, (*PACKAGES, "wrk"))
    assert not (shared / "rootfs-old").exists()
    assert (shared / "rootfs-recent").exists()
    assert len(leftovers(shared)) == 3


def test_a_full_disk_is_reported_before_the_build(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPACE_NEEDED", 1 << 60)
    with pytest.raises(RootfsError, match="GB free; the root filesystem needs"):
        ensure_rootfs(cache, PACKAGES)


def test_a_disk_that_fills_up_is_named(tmp_path: Path) -> None:
    log = tmp_path / "rootfs.log"
    log.write_text(
        "I: extracting archives...\ntar: ./usr/bin/x: Cannot write: No space left on device\nE: tar failed\n"
    )
    assert "the disk is full" in module._failure(log)


def test_a_cache_that_cannot_be_made(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(RootfsError, match="cannot build the root filesystem for"):
        ensure_rootfs(cache, PACKAGES)


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
        ensure_rootfs(cache, PACKAGES)


def test_missing_tools_are_fetched_without_installing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the network: the packages come from the host's own release."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mmdebstrap" else which(name))
    monkeypatch.setattr(mmdebstrap, "HOST_KEYRINGS", tmp_path / "none")
    tool = mmdebstrap.find(tmp_path / "tools")
    assert os.access(tool.command[-1], os.R_OK)
    assert tool.keyring.is_file()
    assert tmp_path in tool.keyring.parents
