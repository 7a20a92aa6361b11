"""The local providers compare the files on the disk with the declared ones; `update` repairs them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pulumi.dynamic import ResourceProvider

from components.dynamic import DRIFT
from components.local.fleets import ReleaseProvider
from components.local.machine import DaemonProvider, MachineProvider
from components.local.scheduler import SchedulerProvider
from components.local.traffic import WeightsProvider
from components.local.wanted import declared
from observatory.documents.rollout import FileRolloutStore, RolloutDocument, StaleRolloutError
from observatory.nodes.haproxy import weights_file
from observatory.nodes.rollback_webhook import rollback_token_file
from observatory.nodes.unit import HttpReady, Paths, TcpReady, Unit
from observatory.runtime import Probe, Program, Sandbox
from observatory.runtime.process_tree import is_stopped
from observatory.runtime.programs import CONFIGURATION_FILE, PROGRAMS
from observatory.runtime.supervisor import Supervisor
from observatory.scheduling.webhook import token
from tests.support.ports import free_port
from tests.support.waiting import until

# Answers with the content of the files that it has read, at its start and at SIGHUP.
DAEMON = """
import http.server, pathlib, signal, sys
def load(*_):
    global texts
    texts = {file.name: file.read_text() for file in sorted(pathlib.Path(sys.argv[2]).glob("*"))}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(repr(texts).encode())
signal.signal(signal.SIGHUP, load); load()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DIRECTORY = "/srv/etc/echo"
CONFIG, SECRET = f"{DIRECTORY}/echo.conf", f"{DIRECTORY}/secret"
DATA = "/srv/data/echo"
LOADED = {"echo.conf": "verbose = 1\n", "secret": "hush"}


class Daemon:
    """A daemon that one provider runs in a sandbox."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        name: str = "echo",
        tcp: bool = False,
        program: str = DAEMON,
        rollout: dict[str, str] | None = None,
    ) -> None:
        self.sandbox, self.provider, self.name = sandbox, DaemonProvider(), name
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        unit = Unit(
            name=name,
            command=("/usr/bin/python3", "-c", program, str(port), DIRECTORY),
            ready=TcpReady(port=port) if tcp else HttpReady(port=port, path="/"),
            priority=50,
            ports={"ports.echo": port},
            files={CONFIG: LOADED["echo.conf"]},
            directories=(DATA,),
            reload_signal="HUP",
        )
        home = {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs)}
        self.props = {**home, **unit.model_dump(exclude_none=True), "secret_files": {SECRET: LOADED["secret"]}}
        self.props |= {"rollout": rollout} if rollout else {}
        self.create()

    @property
    def pid(self) -> int | None:
        return self.sandbox.supervisor.status(self.name).pid

    def path(self, inside: str) -> Path:
        return self.sandbox.host_path(inside)

    def differs(self) -> bool:
        return bool(self.provider.diff("echo", self.outs, self.props).changes)

    def refreshed(self) -> dict[str, str]:
        return drift(self.provider, dict(self.outs))

    def create(self) -> None:
        self.outs = self.provider.create(self.props).outs or {}

    def repair(self) -> None:
        self.outs = self.provider.update("echo", self.outs, self.props).outs or {}

    def answer(self) -> str:
        return httpx.get(self.url, trust_env=False).text


def drift(provider: ResourceProvider, props: dict[str, Any]) -> dict[str, str]:
    """Return the differences that a refresh reports."""
    return dict((provider.read("id", props).outs or {}).get(DRIFT, {}))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("drift") / "home", rootfs)
    sandbox.start()
    yield sandbox
    sandbox.stop(timeout=10)


@pytest.fixture(scope="module")
def daemon(sandbox: Sandbox) -> Daemon:
    return Daemon(sandbox)


def test_one_failed_probe_of_a_busy_machine_is_no_difference(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([False, True, False, False, False])
    monkeypatch.setattr(Probe, "check", lambda _probe: next(results))
    assert not daemon.differs()
    assert daemon.differs()


def test_a_daemon_that_was_stopped_is_not_ready_although_its_port_accepts_connections(sandbox: Sandbox) -> None:
    listening = Daemon(sandbox, name="listening", tcp=True)
    assert not listening.differs()
    assert listening.pid
    stopped = listening.pid
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: is_stopped(stopped), "the daemon to stop, which takes its turn on a processor")
    assert listening.differs()
    listening.repair()
    assert not listening.differs()
    assert listening.answer() == repr(LOADED)
    listening.provider.delete("listening", listening.outs)


def test_a_daemon_that_has_just_started_is_reloaded_when_it_handles_the_signal(sandbox: Sandbox) -> None:
    late = Daemon(sandbox, name="late", program=f"import time; time.sleep(3){DAEMON}")
    first = late.pid
    assert first
    os.kill(first, signal.SIGKILL)
    until(lambda: late.pid not in {None, first}, "the supervisor to start it again")
    second = late.pid
    edit(late.path(CONFIG))
    late.repair()
    assert (late.pid, late.answer()) == (second, repr(LOADED))
    late.provider.delete("late", late.outs)


def edit(path: Path) -> None:
    path.write_text("edited")


def swap_for_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def swap_for_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def swap_the_directory_for_a_link(path: Path) -> None:
    directory = path.parent
    shutil.rmtree(directory.parent / "moved", ignore_errors=True)
    directory.rename(directory.parent / "moved")
    directory.symlink_to("moved")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (Path.unlink, "is missing"),
    (edit, "was changed"),
    (swap_for_a_link, "is a symbolic link"),
    (swap_for_a_directory, "is not a regular file"),
    (swap_the_directory_for_a_link, "is a symbolic link"),
]


@pytest.mark.parametrize("file", [CONFIG, SECRET])
@pytest.mark.parametrize(("damage", "problem"), DAMAGE)
def test_another_content_is_found_and_repaired_with_a_reload(
    daemon: Daemon, damage: Callable[[Path], object], problem: str, file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not daemon.differs()
    assert daemon.refreshed() == {}
    pid = daemon.pid

    damage(daemon.path(file))

    assert daemon.differs()
    assert problem in capfd.readouterr().err
    assert problem in daemon.refreshed().values()
    daemon.repair()
    assert not daemon.differs()
    assert daemon.path(file).read_text() in LOADED.values()
    assert not daemon.path(file).parent.is_symlink()
    assert daemon.answer() == repr(LOADED)
    assert daemon.pid == pid


@pytest.mark.parametrize(("inside", "mode"), [(SECRET, 0o644), (CONFIG, 0o400), (DIRECTORY, 0o777), (DATA, 0o770)])
def test_another_mode_is_found_and_repaired(daemon: Daemon, inside: str, mode: int) -> None:
    daemon.path(inside).chmod(mode)
    assert daemon.refreshed() == {
        inside: f"has the mode {mode:04o}, not {0o700 if daemon.path(inside).is_dir() else 0o600:04o}"
    }
    assert daemon.differs()
    daemon.repair()
    assert not daemon.differs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_another_owner_is_found_and_repaired_with_a_reload(daemon: Daemon) -> None:
    """As after an editor of root: the daemon cannot read the file."""
    owner = daemon.path(SECRET).stat().st_uid
    os.chown(daemon.path(SECRET), 0, 0)
    assert daemon.refreshed() == {SECRET: f"belongs to the user 0, not {owner}"}
    assert daemon.differs()
    daemon.repair()
    assert not daemon.differs()
    assert daemon.path(SECRET).stat().st_uid == owner


def test_an_extra_file_of_a_directory_that_is_read_as_a_whole_is_removed(daemon: Daemon) -> None:
    daemon.path(f"{DIRECTORY}/extra").write_text("more = 1")
    assert daemon.differs()
    assert daemon.refreshed() == {f"{DIRECTORY}/extra": "is not declared"}
    daemon.repair()
    assert not daemon.path(f"{DIRECTORY}/extra").exists()
    assert daemon.answer() == repr(LOADED)


def test_a_removed_directory_of_data_is_created(daemon: Daemon) -> None:
    daemon.path(DATA).rmdir()
    assert daemon.differs()
    daemon.repair()
    assert daemon.path(DATA).is_dir()


def test_a_changed_start_script_restarts_the_daemon(daemon: Daemon) -> None:
    pid = daemon.pid
    daemon.path(f"{PROGRAMS}/echo.sh").write_text("#!/bin/sh\nsleep 1000\n")
    assert daemon.differs()
    daemon.repair()
    assert not daemon.differs()
    assert daemon.pid != pid


def test_a_daemon_that_watches_its_secrets_is_not_reloaded(daemon: Daemon) -> None:
    daemon.props["watches_secrets"] = True
    edit(daemon.path(SECRET))
    assert daemon.differs()
    edit_seen = daemon.answer()
    daemon.repair()
    assert daemon.path(SECRET).read_text() == LOADED["secret"]
    assert daemon.answer() == edit_seen
    daemon.props.pop("watches_secrets")
    daemon.repair()


def test_a_content_that_was_written_before_the_state_is_no_drift(daemon: Daemon) -> None:
    """As after a killed `up`, or a job that renews a certificate: the file is what the documents render now."""
    daemon.path(SECRET).write_text("renewed")
    renewed = {**daemon.props, "secret_files": {SECRET: "renewed"}}
    assert not daemon.provider.diff("echo", {**daemon.outs, "secret_files": {SECRET: "renewed"}}, renewed).changes
    daemon.repair()


def test_after_a_refresh_the_state_forgets_a_difference_that_is_gone(daemon: Daemon) -> None:
    kept = daemon.outs
    daemon.outs = {**kept, DRIFT: {CONFIG: "is missing"}}
    pid = daemon.pid
    assert daemon.differs()
    daemon.repair()
    assert daemon.outs == kept
    assert daemon.pid == pid


def test_the_supervisors_own_files_are_repaired(daemon: Daemon) -> None:
    sandbox, provider = daemon.sandbox, MachineProvider()
    props: dict[str, Any] = {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs), "stack": "project/local"}
    assert not provider.diff("machine", props, props).changes
    sandbox.host_path(CONFIGURATION_FILE).unlink()
    sandbox.host_path(f"{PROGRAMS}/intruder.conf").write_text("[program:intruder]\ncommand=sleep 9\n")
    assert set(drift(provider, props).values()) == {"is missing", "is not declared"}
    assert provider.diff("machine", props, props).changes
    provider.update("machine", props, props)
    assert not provider.diff("machine", props, props).changes
    assert daemon.pid


def weights_props(sandbox: Sandbox, document: Path, **weights: float) -> dict[str, Any]:
    """Return the properties of traffic weights as the engine passes them: numbers arrive as floats."""
    home = {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs)}
    nothing_drains: dict[str, list[str]] = {"blue": [], "green": []}
    return {**home, "weights": weights, "out": {}, "document": str(document), "draining": nothing_drains}


def test_a_program_that_began_before_a_rollback_leaves_the_traffic_as_it_is(sandbox: Sandbox, tmp_path: Path) -> None:
    """A rollback needs no lock, so it may come in the middle of an `up`, which has read the document of before."""
    store, file = FileRolloutStore(tmp_path / "local.json"), sandbox.host_path(weights_file(Paths()))
    first = RolloutDocument.first(version="v0.1.0", sha256="a" * 64, active_fleet="blue")
    promoted = store.create(first.with_weight("green", 100))
    provider, props = WeightsProvider(), weights_props(sandbox, store.path, blue=0.0, green=100.0)
    provider.create(props)
    other = store.compare_and_set(promoted, promoted)
    provider.update("weights", props, props)  # only the traffic of the document counts: a `rollout pause` changes none
    store.compare_and_set(other, other.with_weight("blue", 100))
    file.write_text("blue 100\ngreen 0\n")
    assert provider.diff("weights", props, props).changes
    with pytest.raises(StaleRolloutError, match="the traffic stays as it is"):
        provider.update("weights", props, props)
    assert file.read_text() == "blue 100\ngreen 0\n"


OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def promoted(tmp_path: Path) -> tuple[FileRolloutStore, RolloutDocument]:
    """The document of a stack whose green fleet has been promoted with a new version."""
    store = FileRolloutStore(tmp_path / "local.json")
    first = RolloutDocument.first(version="v0.1.0", sha256=OLD, active_fleet="blue")
    return store, store.create(first.with_fleet("green", version="v0.2.0", sha256=NEW).with_weight("green", 100))


@pytest.mark.parametrize("start", [Daemon.repair, Daemon.create], ids=["update", "create"])
def test_an_up_that_began_before_a_rollback_does_not_start_what_it_has_stopped(
    sandbox: Sandbox, promoted: tuple[FileRolloutStore, RolloutDocument], start: Callable[[Daemon], None]
) -> None:
    store, document = promoted
    wanted = declared(store.path, "green", NEW)
    instance = Daemon(sandbox, name="storage-green-1", rollout=wanted)
    other = store.compare_and_set(document, document.model_copy(update={"schema_target": 7}))
    instance.repair()  # what else changes in the document does not matter
    rolled_back = other.with_weight("blue", 100).with_fleet("green", stopped=("green-1",))
    store.compare_and_set(other, rolled_back)
    sandbox.supervisor.remove(instance.name)
    assert instance.differs()
    with pytest.raises(StaleRolloutError, match=r"storage-green-1 is not run .* Run `observatory up` again"):
        start(instance)
    assert sandbox.supervisor.status(instance.name).state == "ABSENT"


def test_an_instance_that_a_rollback_stops_while_an_up_starts_it_does_not_stay(
    sandbox: Sandbox, promoted: tuple[FileRolloutStore, RolloutDocument], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, document = promoted
    wait_ready = Supervisor.wait_ready

    def rolled_back(*arguments: Any, **options: Any) -> None:
        wait_ready(*arguments, **options)
        before = document.with_weight("blue", 100).with_fleet("green", version="v0.1.0", sha256=OLD)
        store.compare_and_set(document, before)

    monkeypatch.setattr(Supervisor, "wait_ready", rolled_back)
    with pytest.raises(StaleRolloutError):
        Daemon(sandbox, name="storage-green-2", rollout=declared(store.path, "green", NEW))
    assert sandbox.supervisor.status("storage-green-2").state == "ABSENT"


def test_the_balancers_files_are_compared_with_the_rollout(sandbox: Sandbox, tmp_path: Path) -> None:
    provider, props = WeightsProvider(), weights_props(sandbox, tmp_path / "local.json", blue=100.0, green=0.0)
    provider.create(props)
    file = sandbox.host_path(weights_file(Paths()))
    assert not provider.diff("weights", props, props).changes
    file.write_text("blue 0\ngreen 100\n")
    assert provider.diff("weights", props, props).changes
    assert not drift(provider, props)  # a deployment sets weights without changing the state
    file.unlink()
    assert drift(provider, props)
    provider.update("weights", props, props)
    assert not provider.diff("weights", props, props).changes


def test_a_token_that_others_can_read_is_generated_again(sandbox: Sandbox) -> None:
    file = rollback_token_file(Paths())
    props: dict[str, Any] = {"home": str(sandbox.home), "rootfs": str(sandbox.rootfs)}
    first = token(sandbox, file)
    assert not drift(SchedulerProvider(), props)
    sandbox.host_path(file).chmod(0o644)
    assert drift(SchedulerProvider(), props)
    assert token(sandbox, file) != first
    assert token(sandbox, file) == token(sandbox, file)


@pytest.mark.parametrize("damage", [edit, Path.unlink, swap_for_a_link, lambda file: file.chmod(0o777)])
def test_a_changed_release_is_unpacked_again_and_what_runs_from_it_restarted(
    sandbox: Sandbox, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    provider, props, file = a_release(sandbox, tmp_path)
    outs = provider.create(props).outs or {}
    sandbox.supervisor.apply(Program(name="release", command=("/bin/sh", f"{props['directory']}/bin/run")))
    pid = sandbox.supervisor.status("release").pid
    (file.parent / "__pycache__").mkdir()
    (file.parent / "__pycache__/cache.pyc").touch()
    assert not provider.diff("release", outs, props).changes
    damage(file)
    assert set(drift(provider, outs).values()) == {"was changed"}
    assert provider.diff("release", outs, props).changes
    outs = provider.update("release", outs, props).outs or {}
    assert file.read_text() == SCRIPT
    assert not provider.diff("release", outs, props).changes
    assert sandbox.supervisor.status("release").pid != pid
    sandbox.supervisor.remove("release")
    provider.delete("release", outs)


def test_a_release_of_a_state_without_a_fingerprint_is_as_on_the_disk(sandbox: Sandbox, tmp_path: Path) -> None:
    """As the states of 0.1.0."""
    provider, props, file = a_release(sandbox, tmp_path)
    provider.create(props)
    edit(file)
    assert not provider.diff("release", props, props).changes
    shutil.rmtree(file.parent.parent)
    assert provider.diff("release", props, props).changes


SCRIPT = "exec sleep 1000\n"


def a_release(sandbox: Sandbox, tmp_path: Path) -> tuple[ReleaseProvider, dict[str, Any], Path]:
    """Return the provider, the properties of a small release, and its file once it is unpacked."""
    source, artifact = tmp_path / "release", tmp_path / "release.tar.gz"
    (source / "bin").mkdir(parents=True)
    (source / "bin/run").write_text(SCRIPT)
    with tarfile.open(artifact, "w:gz") as archive:
        archive.add(source, ".")
    directory = f"/srv/releases/blue/{tmp_path.name}"
    props = {
        "home": str(sandbox.home),
        "rootfs": str(sandbox.rootfs),
        "artifact": str(artifact),
        "sha256": hashlib.sha256(artifact.read_bytes()).hexdigest(),
        "directory": directory,
    }
    return ReleaseProvider(), props, sandbox.host_path(f"{directory}/bin/run")
