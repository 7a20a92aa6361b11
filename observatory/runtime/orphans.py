"""Ends the daemons of a supervisor that has died: in the reverse order of their start, each with its own stop signal.

supervisord cannot adopt running processes, so its daemons must end before another one starts them. An orphan is found
by the environment that the supervisor gave it, its program by its name there. The first process of a program leads a
process group in the supervisor's session; PostgreSQL, which Patroni started and stops, has a session of its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from observatory.runtime.orphan_output import collecting_output
from observatory.runtime.programs import PROGRAMS, VARIABLE, LoadedProgram
from observatory.runtime.sandbox_files import SandboxFiles
from observatory.waiting import wait_until

KILLED_SECONDS = 10.0  # until the kernel has ended a killed process
# Other daemons wait for their clients when they stop. During this outage a client that is slow must not prolong it. A
# daemon that may take a minute, PostgreSQL below Patroni, writes to disk and gets its whole time.
DRAIN_SECONDS, WRITES_SECONDS = 5, 60


def end_orphans(files: SandboxFiles, members: Callable[[], Sequence[int]]) -> None:
    """End the programs among the processes that `members` returns; other processes may be left."""
    programs = {program.name: program for program in loaded_programs(files)}
    mains = {pid: programs[name] for pid, name in main_processes(files, members()).items() if name in programs}

    def priority(pid: int) -> int:
        return mains[pid].priority

    with collecting_output(files, {pid: f"/srv/log/{program.name}.log" for pid, program in mains.items()}):
        for _, group in itertools.groupby(sorted(mains, key=priority, reverse=True), key=priority):
            _end_group({pid: mains[pid] for pid in group}, members)


def loaded_programs(files: SandboxFiles) -> Iterator[LoadedProgram]:
    """Yield the programs whose configuration is on disk."""
    for file in sorted(files.host_path(PROGRAMS).glob("*.conf")):
        if program := LoadedProgram.parse(file.stem, file.read_text()):
            yield program


def main_processes(files: SandboxFiles, members: Iterable[int]) -> dict[int, str]:
    """Return the first process of each program by its pid.

    Valkey overwrites its environment; the path of its command is still the first word of its command line.
    """
    leaders = [pid for pid in members if _leads_a_group(pid)]
    found = {pid: name for pid in leaders if (name := _program(pid))}
    commands = {command: name for name, command in _commands(files) if name not in found.values()}
    unnamed = {pid: _words(pid)[0] for pid in leaders if pid not in found}
    return found | {pid: commands[word] for pid, word in unnamed.items() if word in commands}


def _commands(files: SandboxFiles) -> Iterator[tuple[str, str]]:
    """Yield the name of each program and the path of its command, from the script that becomes the daemon."""
    for file in sorted(files.host_path(PROGRAMS).glob("*.sh")):
        _, found, command = file.read_text().rpartition(" && exec ")
        if found:
            yield file.stem, shlex.split(command)[0]


def _leads_a_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid and os.getsid(pid) != pid
    except ProcessLookupError:
        return False


def _program(pid: int) -> str | None:
    prefix = f"{VARIABLE}=".encode()
    found = [word for word in _read(pid, "environ").split(b"\0") if word.startswith(prefix)]
    return found[0].removeprefix(prefix).decode() if found else None


def _words(pid: int) -> list[str]:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").split(" ")


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _end_group(mains: Mapping[int, LoadedProgram], members: Callable[[], Sequence[int]]) -> None:
    """Stop the programs of one priority at once; kill each that does not end within its own time."""
    begun = time.monotonic()
    for pid, program in mains.items():
        _send(pid, signal.SIGCONT)  # a stopped process handles no signal
        _send(pid, program.stop_signal)
    for pid, program in sorted(mains.items(), key=lambda entry: _patience(entry[1])):
        left = begun + _patience(program) - time.monotonic()
        if not wait_until(functools.partial(_gone, pid, members), max(left, 0)):
            _send(pid, signal.SIGKILL)
            wait_until(functools.partial(_gone, pid, members), KILLED_SECONDS)


def _patience(program: LoadedProgram) -> int:
    return program.stop_seconds if program.stop_seconds >= WRITES_SECONDS else min(program.stop_seconds, DRAIN_SECONDS)


def _gone(pid: int, members: Callable[[], Sequence[int]]) -> bool:
    return pid not in members()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
