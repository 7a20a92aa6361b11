"""The sandbox (stopgap)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from observatory.machine.errors import SandboxUnavailable
from observatory.machine.files import locked, make_directory, tail, write_file
from observatory.machine.rootfs import UID
from observatory.machine.supervisor import CONFIG, MAIN_CONFIG, PROGRAMS, Supervisor
from observatory.machine.tools import Tools

INSIDE = "/srv"
DIRECTORIES = ("etc", PROGRAMS, "data", "run", "log", "releases")
START_TIMEOUT_S, STOP_TIMEOUT_S, KILL_TIMEOUT_S = 20.0, 120.0, 5.0
POLL_S = 0.05


class Sandbox:
    def __init__(self, home: Path, rootfs: Path) -> None:
        self.home = home
        self.rootfs = rootfs
        self.supervisor = Supervisor(home)

    def alive(self) -> bool:
        return self.supervisor.answers()

    def start(self) -> None:
        make_directory(self.home)
        with locked(self.home / "start.lock"):
            if self.alive():
                return
            self._end_members()
            for directory in DIRECTORIES:
                make_directory(self.home / directory)
            write_file(self.home / CONFIG, MAIN_CONFIG)
            self._wait_for_supervisor(self._spawn())

    def stop(self) -> None:
        with locked(self.home / "start.lock") if self.home.is_dir() else contextlib.nullcontext():
            if self.alive():
                self.supervisor.shutdown()
                self._wait_until_empty(STOP_TIMEOUT_S)
            self._end_members()

    def on_host(self, path: str) -> Path:
        return self.home / path.removeprefix(INSIDE).lstrip("/")

    def write_file(self, path: str, content: str) -> None:
        write_file(self.on_host(path), content)

    def make_directory(self, path: str) -> None:
        make_directory(self.on_host(path))

    def members(self) -> Iterator[int]:
        mine = self.home.stat() if self.home.is_dir() else None
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                theirs = (entry / "root" / INSIDE.lstrip("/")).stat()
                if mine and (theirs.st_dev, theirs.st_ino) == (mine.st_dev, mine.st_ino):
                    yield int(entry.name)

    @cached_property
    def _bwrap(self) -> list[str]:
        program = Tools(directory=self.rootfs.parent / "tools").program("bwrap")
        return [
            *(str(program), "--unshare-user", "--uid", str(UID), "--gid", str(UID)),
            *("--ro-bind", str(self.rootfs), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),  # noqa: S108
            *("--bind", str(self.home), INSIDE, "--chdir", INSIDE, "--clearenv"),
            *("--setenv", "PATH", "/usr/sbin:/usr/bin", "--setenv", "HOME", INSIDE, "--setenv", "LANG", "C.UTF-8"),
        ]

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = [*self._bwrap, "/usr/bin/supervisord", "-c", f"{INSIDE}/{CONFIG}"]
        with (self.home / "log/sandbox.log").open("wb") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
            )

    def _wait_for_supervisor(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.alive():
            if process.poll() is not None or time.monotonic() > deadline:
                log = tail(self.home / "log/sandbox.log", 10)
                raise SandboxUnavailable(f"supervisord did not start. Last lines of {self.home}/log/sandbox.log:\n{log}")
            time.sleep(POLL_S)

    def _end_members(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            members = list(self.members())
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if not members or self._wait_until_empty(KILL_TIMEOUT_S):
                return

    def _wait_until_empty(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while any(True for _ in self.members()):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True
