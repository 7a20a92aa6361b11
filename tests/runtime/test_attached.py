"""A command on standard streams cannot reach the terminal of its caller."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios

import pytest

CALLER = """
import json, os, sys
from observatory.runtime.attached import run_attached
status = run_attached([sys.executable, "-c", sys.argv[1]], dict(os.environ))
print(json.dumps({"status": status, "terminal": os.ttyname(1) if os.isatty(1) else None}), flush=True)
"""
SHOW = """
import json, os, sys
def controlled():
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True
size = list(os.get_terminal_size(0)) if os.isatty(0) else None
print(json.dumps({"terminal": os.ttyname(0) if os.isatty(0) else None, "size": size, "controlled": controlled(),
                  "leads": os.getsid(0) == os.getpid()}), flush=True)
"""


def on_a_terminal(command: str, typed: bytes = b"") -> list[str]:
    """Run a command attached to a terminal of 33 x 99; return the lines that the terminal showed."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 99))
    process = subprocess.Popen(
        [sys.executable, "-c", CALLER, command], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown, written = b"", False
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
            if typed and not written and b"ready" in shown:
                os.write(ours, typed)
                written = True
    except OSError:  # the last process that had the terminal open has ended
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown
    return shown.decode().replace("\r", "").splitlines()


def test_it_has_a_terminal_of_its_own_with_the_callers_size() -> None:
    inner, outer = map(json.loads, on_a_terminal(SHOW))
    assert inner["terminal"] != outer["terminal"]
    assert (inner["size"], inner["controlled"], inner["leads"]) == ([99, 33], True, True)


def test_without_a_terminal_on_its_input_it_has_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLER, SHOW], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    inner = json.loads(done.stdout.splitlines()[0])
    assert (inner["terminal"], inner["controlled"], inner["leads"]) == (None, False, True)


A_LINE = "import sys\nprint('ready', flush=True)\nsys.exit(7 if input() == 'word' else 8)"
# `sigwait` also gets a signal that came before it: a read would miss one between its check for signals and the call.
CTRL_C = (
    "import signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\nprint('ready', flush=True)\n"
    "sys.exit(9 if signal.sigwait({signal.SIGINT}) == signal.SIGINT else 8)"
)


@pytest.mark.parametrize(
    ("command", "typed", "expected"),
    [(A_LINE, b"word\n", '{"status": 7'), (CTRL_C, b"\x03", '{"status": 9')],
    ids=["a line", "Ctrl-C"],
)
def test_keys_and_the_exit_status_pass(command: str, typed: bytes, expected: str) -> None:
    assert expected in on_a_terminal(command, typed)[-1]
