"""Exit statuses and messages of the command line."""

import json
import socket

from tests.service.harness import StorageDatabase, environment, run_to_end
from tests.support.ports import free_port


def test_invalid_setting_exits_with_2_and_names_the_variable(database: StorageDatabase) -> None:
    ended = run_to_end(environment(database, free_port(), {"FLEET": "red"}))
    assert ended.returncode == 2
    assert ended.stderr == "storage-service: STORAGE_FLEET: must be 'blue' or 'green'\n"


def test_port_in_use_exits_with_1_and_one_line(database: StorageDatabase) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_to_end(environment(database, port, {}))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"storage-service: cannot listen on 127.0.0.1:{port} (STORAGE_LISTEN): Address already in use\n"
    )


def test_unknown_host_exits_with_1_and_one_line(database: StorageDatabase) -> None:
    ended = run_to_end(environment(database, 0, {"LISTEN": "no.such.host.invalid:8000"}))
    assert ended.returncode == 1
    assert ended.stderr.startswith("storage-service: cannot listen on no.such.host.invalid:8000 (STORAGE_LISTEN): ")
    assert ended.stderr.count("\n") == 1


def test_check_prints_the_release_without_listening(database: StorageDatabase) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run_to_end(environment(database, taken.getsockname()[1], {}), "--check")
    assert (ended.returncode, ended.stderr) == (0, "")
    said = {"name": "storage-service", "version": "v0.0.0-dev", "schema_min": 3, "schema_max": 8}
    assert json.loads(ended.stdout) == said


def test_check_with_an_invalid_setting_exits_with_2(database: StorageDatabase) -> None:
    ended = run_to_end(environment(database, free_port(), {"POOL_MAX": "0"}), "--check")
    assert ended.returncode == 2
    assert "STORAGE_POOL_MAX" in ended.stderr


def test_version_is_printed() -> None:
    ended = run_to_end({}, "--version")
    assert (ended.returncode, ended.stdout) == (0, "v0.0.0-dev\n")
