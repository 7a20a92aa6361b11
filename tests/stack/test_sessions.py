"""`up` on a terminal, and the direct ways to a running stack's daemons: logs, psql, exec."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading

import pytest

from tests.support.checkout import UP_TIMEOUT_S, Checkout
from tests.support.waiting import until


def on_a_terminal(checkout: Checkout, *arguments: str, typed: str = "") -> tuple[int, str]:
    """Run the command on a terminal of its own; return its exit code and all that the terminal showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "observatory", *arguments],
        cwd=checkout.root,
        env={**os.environ, **checkout.environment, "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, typed.encode())
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the last process that had the terminal open has ended
        pass
    os.close(ours)
    return process.wait(timeout=UP_TIMEOUT_S), shown.decode(errors="replace")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout.copy(tmp_path_factory.mktemp("unconfirmed"), rootfs=None)


def test_up_shows_the_changes_and_a_no_changes_nothing(fresh: Checkout) -> None:
    code, shown = on_a_terminal(fresh, "up", "--engine", "embedded", typed="n\n")
    assert code == 3, shown
    assert "To create" in shown
    assert "Make these changes to the stack 'local'?" in shown
    assert "nothing was changed" in shown
    assert not fresh.home.exists()


def test_up_with_nothing_to_change_prompts_for_nothing(stack: Checkout) -> None:
    code, shown = on_a_terminal(stack, "up", "--engine", "embedded")
    assert code == 0, shown
    assert "Make these changes" not in shown
    assert "No changes" in shown


def test_logs_prints_the_last_lines_of_a_daemon(stack: Checkout) -> None:
    log = stack.home / "log/patroni.log"  # which may be new: a test of rotation may have run
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 3, "some lines of Patroni's log")
    assert len(stack.run("logs", "patroni", "--lines", "3").stdout.splitlines()) == 3
    assert len(stack.json("logs", "patroni", "--lines", "3")["lines"]) == 3
    error = stack.run("logs", "nonsense", expect=2).stderr
    assert "no log 'nonsense'" in error
    assert "haproxy" in error


@pytest.mark.parametrize("name", ["../etc/supervisord", "/etc/passwd", ""])
def test_logs_reads_no_other_file(stack: Checkout, name: str) -> None:
    assert "no log" in stack.run("logs", "--", name, expect=2).stderr


def test_psql_runs_a_statement_as_the_administrator(stack: Checkout) -> None:
    done = stack.run("psql", "--", "-Atc", "select session_user, current_database(), to_regclass('llm_traces')")
    login, database, table = done.stdout.strip().split("|")
    assert login in {"admin_a", "admin_b"}  # another test may have rotated the passwords
    assert (database, table) == ("observatory", "llm_traces")
    assert not [place for place, _, names in os.walk(stack.home) if ".psql_history" in names]
    assert "does not exist" in stack.run("psql", "--", "-c", "select * from absent", expect=1).stderr


def test_exec_runs_a_command_with_the_daemons_environment(stack: Checkout) -> None:
    instance = stack.run("exec", "storage-blue-1", "--", "sh", "-c", "echo $STORAGE_FLEET; id -u; exit 7", expect=7)
    fleet, uid = instance.stdout.split()
    assert fleet == "blue"
    assert uid != "0"
    assert "no daemon 'nonsense'" in stack.run("exec", "nonsense", "--", "true", expect=2).stderr


def test_sessions_need_a_running_stack(fresh: Checkout) -> None:
    for arguments in (("psql",), ("exec", "haproxy", "--", "true"), ("logs", "haproxy")):
        assert "run `observatory up`" in fresh.run(*arguments, expect=3).stderr


def test_logs_follows_a_log(stack: Checkout) -> None:
    seen = threading.Event()

    def write() -> None:
        with (stack.home / "log/alert-receiver.log").open("a") as log:
            while not seen.wait(0.2):  # the command may open the log after the first line
                log.write("a new line\n")
                log.flush()

    process, writer = stack.start("logs", "alert-receiver", "--follow", "--lines", "0"), threading.Thread(target=write)
    writer.start()
    try:
        assert process.stdout is not None
        assert "a new line" in process.stdout.readline()
    finally:
        seen.set()
        writer.join()
        process.kill()
        process.communicate()
